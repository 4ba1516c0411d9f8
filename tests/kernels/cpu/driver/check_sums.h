// Sums over pixels, and the comparison of memory.
#pragma once
#include "kernels.h"
#include "shapes.h"

namespace sums {

inline void check_sum_pixels(Case& test) {
    Random& random = test.random;
    int C = test.argument("C", channels(random, 70));
    int P = test.argument("P", random.chance(30) ? random.between(1, 4000) : random.between(1, 200));
    if (int64_t(P) * C > 40000) P = test.argument("P", 40000 / C);
    bool half = random.chance(50);
    Array& g = test.input("g", float_type(half), {P, C});
    Array& to = test.output("to", Type::FP32, {C});
    fill(g, random);
    test.run("fcg_sum_pixels",
             [&](int threads) { return fcg_sum_pixels(half, g.data(), to.floats(), P, C, threads); });
    // Parts of 64 pixels are added up to sums of 1024, and those to the whole.
    double c = double(least(P, 64) + least(parts_of(P, 64), 16) + parts_of(P, 1024));
    Expected expected(C);
    for (int i = 0; i < C; i++) {
        double sum = 0, size = 0;
        for (int p = 0; p < P; p++) sum += g[int64_t(p) * C + i], size += std::fabs(g[int64_t(p) * C + i]);
        expected.set(i, sum, growth(c) * size);
    }
    test.check(to, expected);
}

inline void check_equal(Case& test) {
    Random& random = test.random;
    int bytes = test.argument("bytes", random.chance(15) ? random.between(1, 1 << 20) : random.between(1, 5000));
    Array& a = test.input("a", Type::BYTE, {bytes});
    Array& b = test.input("b", Type::BYTE, {bytes});
    for (int i = 0; i < bytes; i++) {
        a.set(i, double(i * 7 % 251));
        b.set(i, a[i]);
    }
    bool equal = test.argument("equal", random.chance(30));
    // Often one of the last bytes.
    int other = random.chance(30) ? bytes - 1 : random.between(0, bytes - 1);
    if (!equal) b.set(test.argument("different", other), double((int(b[other]) + random.between(1, 255)) % 256));
    test.run("fcg_equal", [&](int threads) {
        int answer = fcg_equal(static_cast<const char*>(a.data()), static_cast<const char*>(b.data()), bytes, threads);
        return answer != equal;
    });
}

}  // namespace sums
