// The gradients of the weights of convolutions from and to few channels.
#pragma once
#include "image.h"
#include "kernels.h"

namespace direct_gradient {

// What `w` contains before a call, and the gradient on top, within the error of chains of c operations.
inline Expected expect(const std::vector<double>& before, const Image& x, const Image& g, int k, int stride, double c) {
    Image exact = weight_gradient(x, g, k, stride), sizes = weight_gradient(x.absolute(), g.absolute(), k, stride);
    Expected expected(int64_t(before.size()));
    for (size_t i = 0; i < before.size(); i++)
        expected.set(int64_t(i), before[i] + exact.numbers[i],
                     growth(c) * (std::fabs(before[i]) + sizes.numbers[i]) + underflow(c));
    return expected;
}

inline std::vector<double> contents(const Array& w, bool add) {
    std::vector<double> numbers(size_t(w.count()), 0);
    for (int64_t i = 0; add && i < w.count(); i++) numbers[size_t(i)] = w[i];
    return numbers;
}

// The operations of a sum over N images of H rows of W pixels: a product; the sum of 64 pixels at a time, and of these
// over the rows of a part; the sum of the parts; and what was there before.
inline double operations(int N, int H, int W) {
    int64_t rows = int64_t(N) * H, per_part = parts_of(rows, 64) > 8 ? parts_of(rows, 64) : 8;
    return double(1 + least(W, 64) + least(rows, per_part) * parts_of(W, 64) + parts_of(rows, per_part) + 1);
}

inline void check_wide_gradient(Case& test) {
    Random& random = test.random;
    int k = test.argument("k", random.between(1, 7));
    int stride = test.argument("stride", random.chance(50) ? 1 : random.between(2, 3));
    Size s = image_size(test, random.chance(20) ? 6000 : 1000, k, 8);
    bool half = random.chance(50), add = test.argument("add", random.chance(50));
    int O = test.argument("O", s.count() > 2000 ? random.between(1, 6) : channels(random, 70));
    Size of_g{s.N, (s.H - k) / stride + 1, (s.W - k) / stride + 1, O};
    Array& x = test.input("x", Type::FP32, {s.N, s.H, s.W, s.C});
    Array& g = test.input("g", float_type(half), {of_g.N, of_g.H, of_g.W, O});
    Array& w = test.output("w", Type::FP32, {O, k, k, s.C});
    fill(x, random);
    fill(g, random);
    if (add) fill(w, random);
    std::vector<double> before = contents(w, add);
    test.run("fcg_wide_gradient", [&](int threads) {
        return fcg_wide_gradient(half, x.floats(), g.data(), w.floats(), s.N, of_g.H, of_g.W, O, s.H, s.W, s.C, k,
                                 stride, add, threads);
    });
    double c = operations(s.N, of_g.H, of_g.W);
    test.check(w, expect(before, Image(x, s), Image(g, of_g), k, stride, c));
}

inline void check_few_gradient(Case& test) {
    Random& random = test.random;
    int k = test.argument("k", random.between(1, 7));
    Size s = image_size(test, random.chance(20) ? 6000 : 1000, k);
    bool half = random.chance(50), add = test.argument("add", random.chance(50));
    int O = test.argument("O", random.between(1, 7));
    Size inner{s.N, s.H - k + 1, s.W - k + 1, O};
    Image gradient(inner.N, inner.H, inner.W, O);
    for (double& number : gradient.numbers) number = float(random.scaled(4));
    Image bordered = padded(gradient, k - 1, false);
    Array& g = test.input("g", Type::FP32, {s.N, bordered.H, bordered.W, O});
    Array& x = test.input("x", float_type(half), {s.N, s.H, s.W, s.C});
    Array& w = test.output("w", Type::FP32, {O, k, k, s.C});
    for (int64_t i = 0; i < g.count(); i++) g.set(i, bordered.numbers[size_t(i)]);
    fill(x, random);
    if (add) fill(w, random);
    std::vector<double> before = contents(w, add);
    test.run("fcg_few_gradient", [&](int threads) {
        return fcg_few_gradient(half, g.floats(), x.data(), w.floats(), s.N, s.H, s.W, s.C, bordered.H, bordered.W, O,
                                k, 1, add, threads);
    });
    // The sum is over all pixels of x, of which each meets a pixel of g with its border.
    test.check(w, expect(before, Image(x, s), gradient, k, 1, operations(s.N, s.H, s.W)));
}

}  // namespace direct_gradient
