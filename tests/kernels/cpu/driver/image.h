// Images in double, and convolutions by their definition.
#pragma once
#include <functional>

#include "shapes.h"

struct Image {
    int N, H, W, C;
    std::vector<double> numbers;
    Image(int N, int H, int W, int C) : N(N), H(H), W(W), C(C), numbers(size_t(N) * H * W * C, 0) {}
    Image(const Array& array, const Size& s);
    double* at(int n, int h, int w) { return &numbers[((size_t(n) * H + h) * W + w) * C]; }
    const double* at(int n, int h, int w) const { return &numbers[((size_t(n) * H + h) * W + w) * C]; }
    bool has(int h, int w) const { return h >= 0 && h < H && w >= 0 && w < W; }
    Image absolute() const;
};

// The position in a line of `size` numbers that a reflected border shows at position i.
int mirrored(int i, int size);

Image padded(const Image& x, int border, bool reflect);

// A weight, by output, row, column and input.
using Weight = std::function<double(int o, int i, int j, int c)>;

// The convolution of a padded image to O channels, with k x k kernels.
Image convolved(const Image& x, const Weight& w, int O, int k, int stride);

// The gradient [O, k, k, C] of the weights of this convolution, from the gradient g of its output.
Image weight_gradient(const Image& x, const Image& g, int k, int stride);
