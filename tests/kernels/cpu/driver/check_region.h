// The moments and the norm of a region of an image in channels_last.
#pragma once
#include "check_norm.h"

namespace region {

struct Region {
    Layout layout;
    Array& array;
    int64_t row() const { return int64_t(layout.width) * layout.C + layout.gap; }
    double at(int p, int c) const { return array.present() ? array[layout.at(0, p, c)] : 0; }
};

inline Size region_size(Case& test) {
    Size s = image_size(test, 8000);
    s.N = 1;
    return s;
}

// The array ends with the last pixel. Between the rows it has NaN, because nothing else is set.
inline Region random_region(Case& test, const char* name, const Size& s, bool half, bool present = true) {
    Random& random = test.random;
    int gap = test.argument("gap", random.chance(30) ? 0 : random.between(1, 2 * s.C + 1));
    Layout layout{1, s.C, s.pixels(), false, gap, s.W};
    int count = int(layout.at(0, s.pixels() - 1, s.C - 1)) + 1;
    Region region{layout, test.input(name, float_type(half), {count}, present)};
    fill_lines(region.array, layout, random, 40);
    return region;
}

inline void check_moments(Case& test) {
    Size s = region_size(test);
    bool half = test.random.chance(50);
    Region x = random_region(test, "x", s, half);
    Array& mean = test.output("mean", Type::FP32, {s.C});
    Array& variance = test.output("variance", Type::FP32, {s.C});
    test.run("fcg_region_moments", [&](int threads) {
        return fcg_region_moments(half, x.array.data(), x.row(), mean.floats(), variance.floats(), s.H, s.W, s.C,
                                  threads);
    });
    norm::Sums sums{double(least(s.pixels(), 64)), double(parts_of(s.pixels(), 64))};
    Expected means(s.C), variances(s.C);
    for (int c = 0; c < s.C; c++) {
        norm::Moments m = norm::moments(x.layout.line(x.array, 0, c), 1e-5, sums);
        means.set(c, m.mean, m.mean_error);
        // Equal pixels, whose mean is exact, have exactly no variance.
        bool flat = m.mean_error == 0 && std::isfinite(m.mean);
        variances.set(c, flat ? 0 : m.variance, flat ? 0 : m.variance_error);
    }
    test.check(mean, means);
    test.check(variance, variances);
}

inline void check_norm(Case& test) {
    Random& random = test.random;
    Size s = region_size(test);
    bool half = random.chance(50);
    Region x = random_region(test, "x", s, half);
    Region residual = random_region(test, "residual", s, half, random.chance(40));
    Norm norm = norm_of(test, s.C);
    Array& mean = test.input("mean", Type::FP32, {s.C});
    Array& rstd = test.input("rstd", Type::FP32, {s.C});
    Array& y = test.output("y", float_type(half), {s.H, s.W, s.C});
    fill(mean, random);
    for (int c = 0; c < s.C; c++) rstd.set(c, 1.25 + random.unit());
    test.run("fcg_norm_region", [&](int threads) {
        return fcg_norm_region(half, x.array.data(), x.row(), residual.array.data(), residual.row(), y.data(),
                               norm.scale.floats(), norm.shift.floats(), mean.floats(), rstd.floats(), s.H, s.W, s.C,
                               norm.activation, float(norm.slope), threads);
    });
    Expected expected(y.count());
    for (int p = 0; p < s.pixels(); p++)
        for (int c = 0; c < s.C; c++)
            norm::expect_number(expected, int64_t(p) * s.C + c, x.at(p, c),
                                norm::Moments::given(mean[c], rstd[c]), norm, c, residual.at(p, c));
    test.check(y, expected);
}

}  // namespace region
