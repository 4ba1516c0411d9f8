// The sizes of the numbers in Winograd's algorithm, from which the bounds of its errors follow.
//
// The algorithm computes y = A^T [sum over channels of (G g G^T) * (B^T d B)] A tile by tile. Each step is a sum of
// products with constants, so a term of the whole goes through the roundings of its steps, and the error is at most
// growth(their number) times the same expression with the absolute values of all matrices and numbers.
#pragma once
#include "image.h"

namespace winograd_sizes {

constexpr int WINDOW = 6, TILE = 4, POINTS = 36;

// The roundings on the longest path through one dimension of a transform, twice in two dimensions:
// - the window: of d1 in B (d3 - A^2 d1) + (d4 - A^2 d2), a product, a difference, a product and a sum;
// - the kernel: the constant, of up to two roundings, a product, and two sums;
// - the outputs: of m1 in A^2 (A (m1 - m2)) + B^2 (...) + m5, a difference, two products and two sums;
// - the gradient's tile: of y3 in A (y1 + A^2 y3), two products and a sum, and a sum with the even part;
// - back to the kernel: the constant, a product and five sums.
constexpr double ROUNDINGS_WINDOW = 2 * 4, ROUNDINGS_KERNEL = 2 * 5, ROUNDINGS_OUTPUT = 2 * 5, ROUNDINGS_GRADIENT = 2 * 4,
                 ROUNDINGS_BACK = 2 * 8;

using Points = std::vector<double>;

// |B^T| |d| |B| for the window of the padded image that begins at (h, w). Beyond the image there are zeros.
Points window(const Image& x, int n, int h, int w, int c);
// |G| |g| |G^T| for the 3x3 kernel g.
Points kernel(const std::vector<double>& g);
// |A| |g| |A^T| for the tile of outputs that begins at (h, w).
Points tile(const Image& g, int n, int h, int w, int o);
// |A^T| m |A|: 4x4 outputs.
Points outputs(const Points& m);
// |G^T| m |G|: a 3x3 kernel.
Points back(const Points& m);

}  // namespace winograd_sizes
