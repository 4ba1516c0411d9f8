// Convolutions from few channels ("wide") and to few channels ("few"), by their definition.
#pragma once
#include "image.h"
#include "kernels.h"
#include "vectors.h"

namespace direct {

struct Arguments {
    Size s;
    int O, k, stride;
};

inline Arguments arguments_of(Case& test, bool few) {
    Random& random = test.random;
    Arguments a{};
    a.k = test.argument("k", random.between(1, 7));
    a.stride = test.argument("stride", random.chance(50) ? 1 : random.between(2, 3));
    a.s = image_size(test, random.chance(20) ? 4000 : 1000, a.k, few ? 70 : 8);
    a.O = test.argument("O", few ? random.between(1, 7) : channels(random, 70));
    return a;
}

// The convolution of x, plus a bias, within the error of chains of c operations.
inline Expected expect(const Array& x, const Array& w, const Array& bias, const Arguments& a, double c) {
    Image image(x, a.s);
    Image weights(w, {a.O, a.k, a.k, a.s.C}), exact = convolved(image, weights, a.stride);
    Image sizes = convolved(image.absolute(), weights.absolute(), a.stride);
    Expected expected(int64_t(exact.numbers.size()));
    for (int64_t i = 0; i < int64_t(exact.numbers.size()); i++) {
        double offset = bias.present() ? bias[i % a.O] : 0;
        expected.set(i, exact.numbers[size_t(i)] + offset,
                     growth(c) * (sizes.numbers[size_t(i)] + std::fabs(offset)) + underflow(c));
    }
    return expected;
}

inline std::vector<int> output_shape(const Arguments& a) {
    return {a.s.N, (a.s.H - a.k) / a.stride + 1, (a.s.W - a.k) / a.stride + 1, a.O};
}

inline void check_wide(Case& test) {
    Arguments a = arguments_of(test, false);
    const Size& s = a.s;
    bool half = test.random.chance(50);
    Array& x = test.input("x", Type::FP32, {s.N, s.H, s.W, s.C});
    Array& w = test.input("w", Type::FP32, {a.O, a.k, a.k, s.C});
    Array& bias = test.input("bias", Type::FP32, {a.O}, test.random.chance(50));
    for (Array* array : {&x, &w, &bias}) fill(*array, test.random);
    Array& u = test.output("u", Type::FP32, {int(test.size("fcg_wide_size", fcg_wide_size(a.O, s.C, a.k)))});
    test.run("fcg_wide_weight",
             [&](int threads) { return fcg_wide_weight(w.floats(), u.floats(), a.O, s.C, a.k, threads); });
    Array& y = test.output("y", float_type(half), output_shape(a));
    test.run("fcg_wide", [&](int threads) {
        return fcg_wide(half, x.floats(), u.floats(), bias.floats(), y.data(), s.N, s.H, s.W, s.C, a.O, a.k, a.stride,
                        threads);
    });
    // A product, and a sum that is added to the result when 64 products or more, so at most 127, have been summed.
    int64_t terms = int64_t(a.k) * a.k * s.C;
    test.check(y, expect(x, w, bias, a, double(1 + least(terms, 127) + parts_of(terms, 64) + 1)));
}

inline void check_few(Case& test) {
    Arguments a = arguments_of(test, true);
    const Size& s = a.s;
    bool half = test.random.chance(50), half_out = half && test.random.chance(50);
    Array& x = test.input("x", float_type(half), {s.N, s.H, s.W, s.C});
    Array& w = test.input("w", Type::FP32, {a.O, a.k, a.k, s.C});
    Array& bias = test.input("bias", Type::FP32, {a.O}, test.random.chance(50));
    for (Array* array : {&x, &w, &bias}) fill(*array, test.random);
    Array& u = test.output("u", Type::FP32, {int(test.size("fcg_few_size", fcg_few_size(a.O, s.C, a.k)))});
    test.run("fcg_few_weight",
             [&](int threads) { return fcg_few_weight(w.floats(), u.floats(), a.O, s.C, a.k, threads); });
    Array& y = test.output("y", float_type(half_out), output_shape(a));
    test.run("fcg_few", [&](int threads) {
        return fcg_few(half, half_out, x.data(), u.floats(), bias.floats(), y.data(), s.N, s.H, s.W, s.C, a.O, a.k,
                       a.stride, threads);
    });
    // A product, the sum of a lane, the sum of the lanes in pairs, and the bias.
    int64_t terms = int64_t(a.k) * a.k * parts_of(s.C, LANES);
    test.check(y, expect(x, w, bias, a, double(1 + terms + pairs(LANES) + 1)));
}

}  // namespace direct
