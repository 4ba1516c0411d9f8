// Images in double, and convolutions by their definition.
#pragma once
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

inline Image::Image(const Array& array, const Size& s) : Image(s.N, s.H, s.W, s.C) {
    for (size_t i = 0; i < numbers.size(); i++) numbers[i] = array[int64_t(i)];
}

inline Image Image::absolute() const {
    Image result = *this;
    for (double& number : result.numbers) number = std::fabs(number);
    return result;
}

// The position in a line of `size` numbers that a reflected border shows at position i.
inline int mirrored(int i, int size) {
    if (i < 0) return -i;
    return i < size ? i : 2 * (size - 1) - i;
}

inline Image padded(const Image& x, int border, bool reflect) {
    Image y(x.N, x.H + 2 * border, x.W + 2 * border, x.C);
    for (int n = 0; n < y.N; n++)
        for (int h = 0; h < y.H; h++)
            for (int w = 0; w < y.W; w++) {
                int row = h - border, column = w - border;
                if (reflect) row = mirrored(row, x.H), column = mirrored(column, x.W);
                for (int c = 0; x.has(row, column) && c < x.C; c++) y.at(n, h, w)[c] = x.at(n, row, column)[c];
            }
    return y;
}

// The convolution of a padded image with weights [O, k, k, C].
inline Image convolved(const Image& x, const Image& weights, int stride) {
    int k = weights.H;
    Image y(x.N, (x.H - k) / stride + 1, (x.W - k) / stride + 1, weights.N);
    for (int o = 0; o < y.C; o++)
        for (int i = 0; i < k; i++)
            for (int j = 0; j < k; j++) {
                const double* kernel = weights.at(o, i, j);
                for (int n = 0; n < y.N; n++)
                    for (int h = 0; h < y.H; h++)
                        for (int v = 0; v < y.W; v++) {
                            const double* from = x.at(n, h * stride + i, v * stride + j);
                            double sum = 0;
                            for (int c = 0; c < x.C; c++) sum += from[c] * kernel[c];
                            y.at(n, h, v)[o] += sum;
                        }
            }
    return y;
}

// The gradient [O, k, k, C] of the weights of this convolution, from the gradient g of its output.
inline Image weight_gradient(const Image& x, const Image& g, int k, int stride) {
    Image dw(g.C, k, k, x.C);
    for (int n = 0; n < g.N; n++)
        for (int h = 0; h < g.H; h++)
            for (int w = 0; w < g.W; w++)
                for (int i = 0; i < k; i++)
                    for (int j = 0; j < k; j++) {
                        const double *from = x.at(n, h * stride + i, w * stride + j), *d = g.at(n, h, w);
                        for (int o = 0; o < g.C; o++)
                            for (int c = 0; c < x.C; c++) dw.at(o, i, j)[c] += d[o] * from[c];
                    }
    return dw;
}
