// 3x3 convolutions by Winograd's algorithm, in all forms of weights.
#pragma once
#include "kernels.h"
#include "winograd_sizes.h"

namespace winograd {

using namespace winograd_sizes;

// The sizes of the outputs, tile by tile.
inline Image sizes_of(const Image& x, const Image& weights) {
    int O = weights.N;
    Image y(x.N, x.H - 2, x.W - 2, O);
    std::vector<Points> kernels;
    for (int o = 0; o < O; o++)
        for (int c = 0; c < x.C; c++) {
            std::vector<double> g;
            for (int k = 0; k < 9; k++) g.push_back(weights.at(o, k / 3, k % 3)[c]);
            kernels.push_back(kernel(g));
        }
    for (int n = 0; n < y.N; n++)
        for (int h = 0; h < y.H; h += TILE)
            for (int v = 0; v < y.W; v += TILE) {
                std::vector<Points> windows;
                for (int c = 0; c < x.C; c++) windows.push_back(window(x, n, h, v, c));
                for (int o = 0; o < O; o++) {
                    Points m(POINTS, 0);
                    for (int c = 0; c < x.C; c++)
                        for (size_t k = 0; k < POINTS; k++)
                            m[k] += kernels[size_t(o) * x.C + c][k] * windows[size_t(c)][k];
                    Points out = outputs(m);
                    for (int i = 0; i < TILE; i++)
                        for (int j = 0; j < TILE; j++)
                            if (y.has(h + i, v + j)) y.at(n, h + i, v + j)[o] = out[size_t(i * TILE + j)];
                }
            }
    return y;
}

// Sizes whose tiles fill several blocks, or whose channels fill several panels.
inline Size winograd_image(Case& test) {
    if (test.random.chance(10)) return image_size(test, 4000, 30, 2);
    return image_size(test, test.random.chance(20) ? 3000 : 700);
}

struct Arguments {
    bool half, half_out, reflect;
    int form, pad, O;
};

inline Arguments arguments_of(Case& test, const Size& s) {
    Random& random = test.random;
    Arguments a{};
    a.half = random.chance(50);
    a.half_out = a.half && random.chance(50);
    a.form = test.argument("form", random.between(0, 2));
    a.reflect = test.argument("reflect", random.chance(50));
    a.pad = border_of(test, s, a.reflect);
    // The output has a pixel at least.
    while (s.H + 2 * a.pad < 3 || s.W + 2 * a.pad < 3) a.reflect ? a.reflect = false : a.pad = random.between(1, 4);
    test.argument("pad", a.pad);
    a.O = test.argument("O", s.count() > 2000 ? random.between(1, 6) : channels(random, 70));
    return a;
}

// The weights [O, 3, 3, C] that `w` of the given form contains, rounded if the image is.
inline Image weights_of(const Array& w, const Arguments& a, int C) {
    Image weights(a.O, 3, 3, C);
    for (int o = 0; o < a.O; o++)
        for (int k = 0; k < 9; k++)
            for (int c = 0; c < C; c++) {
                int64_t plain = (int64_t(o) * 9 + k) * C + c, turned = (int64_t(c) * 9 + 8 - k) * a.O + o;
                double value = w[a.form == 2 ? turned : plain];
                weights.at(o, k / 3, k % 3)[c] = a.half ? rounded_to_bf16(value) : value;
            }
    return weights;
}

// Transforms the weights of form 0.
inline Array& transformed(Case& test, Array& w, const Arguments& a, int C) {
    int size = int(test.size("fcg_winograd_size", fcg_winograd_size(a.O, C)));
    Array& u = test.output("u", Type::FP32, {size});
    test.run("fcg_winograd_weight", [&](int threads) {
        return fcg_winograd_weight(a.half, w.floats(), u.floats(), a.O, C, threads);
    });
    return u;
}

inline void check_winograd(Case& test) {
    Size s = winograd_image(test);
    Arguments a = arguments_of(test, s);
    Array& x = test.input("x", float_type(a.half), {s.N, s.H, s.W, s.C});
    Array& w = test.input("w", Type::FP32, {a.form == 2 ? s.C : a.O, 3, 3, a.form == 2 ? a.O : s.C});
    Array& bias = test.input("bias", Type::FP32, {a.O}, test.random.chance(50));
    for (Array* array : {&x, &w, &bias}) fill(*array, test.random);
    Array& form = a.form == 0 ? transformed(test, w, a, s.C) : w;
    Array& y = test.output("y", float_type(a.half_out), {s.N, s.H + 2 * a.pad - 2, s.W + 2 * a.pad - 2, a.O});
    test.run("fcg_winograd", [&](int threads) {
        return fcg_winograd(a.half, a.half_out, a.form, x.data(), form.floats(), bias.floats(), y.data(), s.N, s.H, s.W,
                            s.C, a.O, a.pad, a.reflect, threads);
    });
    Image image = padded(Image(x, s), a.pad, a.reflect);
    Image weights = weights_of(w, a, s.C), exact = convolved(image, weights, 1), sizes = sizes_of(image, weights);
    // Products are summed in parts of 64 channels, and the bias is added last.
    double c = ROUNDINGS_WINDOW + ROUNDINGS_KERNEL + ROUNDINGS_OUTPUT + double(least(s.C, 64) + parts_of(s.C, 64)) + 1;
    Expected expected(y.count());
    for (int64_t i = 0; i < y.count(); i++) {
        double offset = bias.present() ? bias[i % a.O] : 0;
        expected.set(i, exact.numbers[size_t(i)] + offset,
                     growth(c) * (sizes.numbers[size_t(i)] + std::fabs(offset)) + underflow(c));
    }
    test.check(y, expected);
}

}  // namespace winograd
