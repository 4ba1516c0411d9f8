#include "image.h"

Image::Image(const Array& array, const Size& s) : Image(s.N, s.H, s.W, s.C) {
    for (size_t i = 0; i < numbers.size(); i++) numbers[i] = array[int64_t(i)];
}

Image Image::absolute() const {
    Image result = *this;
    for (double& number : result.numbers) number = std::fabs(number);
    return result;
}

int mirrored(int i, int size) {
    if (i < 0) return -i;
    return i < size ? i : 2 * (size - 1) - i;
}

Image padded(const Image& x, int border, bool reflect) {
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

Image convolved(const Image& x, const Weight& w, int O, int k, int stride) {
    Image y(x.N, (x.H - k) / stride + 1, (x.W - k) / stride + 1, O);
    std::vector<double> kernel(size_t(x.C));
    for (int o = 0; o < O; o++)
        for (int i = 0; i < k; i++)
            for (int j = 0; j < k; j++) {
                for (int c = 0; c < x.C; c++) kernel[size_t(c)] = w(o, i, j, c);
                for (int n = 0; n < y.N; n++)
                    for (int h = 0; h < y.H; h++)
                        for (int v = 0; v < y.W; v++) {
                            const double* from = x.at(n, h * stride + i, v * stride + j);
                            double sum = 0;
                            for (int c = 0; c < x.C; c++) sum += from[c] * kernel[size_t(c)];
                            y.at(n, h, v)[o] += sum;
                        }
            }
    return y;
}

Image weight_gradient(const Image& x, const Image& g, int k, int stride) {
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
