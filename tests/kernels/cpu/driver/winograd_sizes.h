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
constexpr double ROUNDINGS_WINDOW = 2 * 4, ROUNDINGS_KERNEL = 2 * 5, ROUNDINGS_OUTPUT = 2 * 5,
                 ROUNDINGS_GRADIENT = 2 * 4, ROUNDINGS_BACK = 2 * 8;

using Points = std::vector<double>;

// The absolute values of a matrix of `rows` rows and `columns` columns.
struct Matrix {
    int rows, columns;
    std::vector<double> numbers;
    double at(int i, int j) const { return numbers[size_t(i * columns + j)]; }
    Matrix transposed() const {
        Matrix result{columns, rows, {}};
        for (int j = 0; j < columns; j++)
            for (int i = 0; i < rows; i++) result.numbers.push_back(at(i, j));
        return result;
    }
    // M d, with as many columns as d.
    Points times(const Points& d, int width) const {
        Points result(size_t(rows * width), 0);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < width; j++)
                for (int k = 0; k < columns; k++) result[size_t(i * width + j)] += at(i, k) * d[size_t(k * width + j)];
        return result;
    }
    // M d M^T.
    Points around(const Points& d) const {
        Matrix left{rows, columns, times(d, columns)};
        return left.times(transposed().numbers, rows);
    }
};

// The points 0, +-a, +-b and infinity.
constexpr double a = 0.75, b = 1.5, aa = a * a, bb = b * b;
const double na = 1 / (2 * aa * (bb - aa)), nb = 1 / (2 * bb * (bb - aa));

const Matrix BT{6, 6, {aa * bb, 0, aa + bb, 0, 1, 0, 0, a * bb, bb, a, 1, 0, 0, a * bb, bb, a, 1, 0,
                       0, b * aa, aa, b, 1, 0, 0, b * aa, aa, b, 1, 0, 0, aa * bb, 0, aa + bb, 0, 1}};
const Matrix G{6, 3, {1 / (aa * bb), 0, 0, na, a * na, aa * na, na, a * na, aa * na,
                      nb, b * nb, bb * nb, nb, b * nb, bb * nb, 0, 0, 1}};
const Matrix AT{4, 6, {1, 1, 1, 1, 1, 0, 0, a, a, b, b, 0, 0, aa, aa, bb, bb, 0, 0, a * aa, a * aa, b * bb, b * bb, 1}};
const Matrix A = AT.transposed(), GT = G.transposed();

// The absolute values of a square of `side` pixels of channel c.
inline Points square(const Image& x, int n, int h, int w, int c, int side) {
    Points d;
    for (int i = 0; i < side; i++)
        for (int j = 0; j < side; j++) d.push_back(x.has(h + i, w + j) ? std::fabs(x.at(n, h + i, w + j)[c]) : 0);
    return d;
}

// |B^T| |d| |B| for the window of the padded image that begins at (h, w). Beyond the image there are zeros.
inline Points window(const Image& x, int n, int h, int w, int c) { return BT.around(square(x, n, h, w, c, WINDOW)); }

// |G| |g| |G^T| for the 3x3 kernel g.
inline Points kernel(const std::vector<double>& g) {
    Points sizes;
    for (double number : g) sizes.push_back(std::fabs(number));
    return G.around(sizes);
}

// |A| |g| |A^T| for the tile of outputs that begins at (h, w).
inline Points tile(const Image& g, int n, int h, int w, int o) { return A.around(square(g, n, h, w, o, TILE)); }

// |A^T| m |A|: 4x4 outputs.
inline Points outputs(const Points& m) { return AT.around(m); }

// |G^T| m |G|: a 3x3 kernel.
inline Points back(const Points& m) { return GT.around(m); }

}  // namespace winograd_sizes
