// Instance norm in channels_last and of planes.
#pragma once
#include "image.h"
#include "kernels.h"
#include "norms.h"
#include "vectors.h"

namespace norm {

// Mean, variance and 1 / sigma of a line, with bounds of their errors.
struct Moments {
    double mean = 0, mean_error = 0, variance = 0, variance_error = 0, rstd = 0, rstd_error = 0;
    static Moments given(double mean, double rstd) { return {mean, 0, 0, 0, rstd, 0}; }
};

// How a kernel sums up a line: each number of a chunk goes through at most `additions` additions, and the moments of
// `chunks` chunks are joined one by one.
struct Sums {
    double additions, chunks;
};

// The kernels take, for each chunk of m numbers, a = the mean, off by rounding errors; d = x - a; the mean
// a + sum(d) / m and the squares S = sum(d^2) - sum(d)^2 / m. In exact arithmetic both are right for any a. With n
// additions, M the largest number and R the range of the line:
// - a is off by at most delta = growth(n + 2) M: the sum, times 1 / m, which is rounded as well.
// - The mean of a chunk: sum(d) / m adds growth(n + 3) (R + delta), and its addition to a adds ROUNDING * M.
// - Joining a chunk: mean + (other - mean) w with w = size / count rounds three times a number of at most R, and once
//   one of at most M. What came before is averaged, so that errors of means add up over chunks and do not grow.
// - The squares: d^2 has n + 3 roundings (of d, twice, the product, the sum), and sum(d)^2 / m has 2n + 4. Both sums
//   are at most S + m delta^2.
// - Joining adds w (other - mean)^2 with the sum of all w at most P, where other - mean is off by E = 2 mean_error and
//   a rounding: at most 2 E sqrt(P S) + P E^2 by the inequality of Cauchy and Schwarz, and roundings of the sum.
// - Each part of the squares is multiplied by 1 / P, which is rounded as well: two roundings for what a chunk has, and
//   three for what joining adds, with the one of its weight.
// - 1 / sqrt(S / P + eps): one rounding before the root, and two after it. S is never below 0.
inline Moments moments(const std::vector<double>& x, double eps, const Sums& sums) {
    double P = double(x.size()), n = sums.additions, largest = 0, low = x[0], high = x[0], sum = 0, S = 0;
    for (double number : x) {
        sum += number;
        largest = std::fmax(largest, std::fabs(number));
        low = std::fmin(low, number);
        high = std::fmax(high, number);
    }
    Moments m;
    m.mean = sum / P;
    for (double number : x) S += (number - m.mean) * (number - m.mean);
    if (!std::isfinite(sum)) {
        m.mean = m.variance = m.rstd = NAN;
        return m;
    }
    double R = high - low, delta = growth(n + 2) * largest;
    // A line of equal numbers has exactly their value as its mean.
    if (R > 0)
        m.mean_error = growth(n + 3) * (R + delta) + growth(1) * (largest + R) +
                       sums.chunks * (growth(3) * (R + 2 * delta) + growth(1) * (largest + R)) + underflow(n);
    else
        m.mean = x[0];
    double E = sums.chunks > 1 ? 2 * m.mean_error + growth(1) * R : 0;
    double error = growth(3 * n + 7 + sums.chunks + 10) * (S + P * delta * delta) + 2 * E * std::sqrt(P * S) + P * E * E;
    m.variance = S / P;
    m.variance_error = error / P;
    double r = m.variance + eps, r_error = m.variance_error + growth(3) * (r + m.variance_error);
    m.rstd = 1 / std::sqrt(r);
    double most = 1 / std::sqrt(std::fmax(r - r_error, eps * (1 - growth(3)))) * (1 + growth(2));
    double least = 1 / std::sqrt(r + r_error) * (1 - growth(2));
    m.rstd_error = std::fmax(most - m.rstd, m.rstd - least);
    return m;
}

inline double activated(double z, const Norm& norm) {
    if (norm.activation == 1) return z < 0 ? 0 : z;
    if (norm.activation == 2) return z > 0 ? z : z * norm.slope;
    return z;
}

// Sets y = act((x - mean) * rstd * scale + shift) + residual. The difference, both products, the sum, the slope and the
// residual round once each; errors of mean and rstd are multiplied by the other factor. The activation does not enlarge
// them, as no slope here is larger than 1.
inline void expect_number(Expected& y, int64_t i, double x, const Moments& m, const Norm& norm, int c,
                          double residual) {
    double t = x - m.mean, s = m.rstd * norm.scale_of(c), shift = norm.shift_of(c);
    double t_most = std::fabs(t) + m.mean_error, s_most = (m.rstd + m.rstd_error) * std::fabs(norm.scale_of(c));
    double error = t_most * s_most - std::fabs(t * s);
    // Where the difference is exactly 0, nothing is rounded.
    if (t_most > 0) error += growth(4) * (t_most * s_most + std::fabs(shift)) + underflow(4);
    double a = activated(t * s + shift, norm);
    if (norm.activation == 2) error += growth(1) * std::fabs(a);
    if (residual != 0) error += growth(1) * (std::fabs(a) + error + std::fabs(residual));
    y.set(i, a + residual, error);
}

struct Results {
    Expected y, mean, rstd;
    explicit Results(const Layout& layout)
        : y(int64_t(layout.N) * layout.P * layout.C), mean(int64_t(layout.N) * layout.C), rstd(mean) {}
};

template <class MomentsOf>
Results expect(const Array& x, const Array& residual, const Layout& layout, const Norm& norm,
               const MomentsOf& moments_of) {
    Results results(layout);
    for (int n = 0; n < layout.N; n++)
        for (int c = 0; c < layout.C; c++) {
            Moments m = moments_of(n, c);
            results.mean.set(int64_t(n) * layout.C + c, m.mean, m.mean_error);
            results.rstd.set(int64_t(n) * layout.C + c, m.rstd, m.rstd_error);
            for (int p = 0; p < layout.P; p++) {
                int64_t i = layout.at(n, p, c);
                expect_number(results.y, i, x[i], m, norm, c, residual.present() ? residual[i] : 0);
            }
        }
    return results;
}

// The expected numbers of an image with its reflected border.
inline Expected with_border(const Expected& inner, const Size& s, int p) {
    Expected y(int64_t(s.N) * (s.H + 2 * p) * (s.W + 2 * p) * s.C);
    int64_t i = 0;
    for (int n = 0; n < s.N; n++)
        for (int h = -p; h < s.H + p; h++)
            for (int w = -p; w < s.W + p; w++)
                for (int c = 0; c < s.C; c++, i++) {
                    int64_t from = ((int64_t(n) * s.H + mirrored(h, s.H)) * s.W + mirrored(w, s.W)) * s.C + c;
                    y.set(i, inner.value[size_t(from)], inner.error[size_t(from)]);
                }
    return y;
}

inline void check_norm(Case& test) {
    Random& random = test.random;
    Size s = image_size(test, 10000);
    bool half = random.chance(50), again = test.argument("again", random.chance(30));
    int border = test.argument("border", border_of(test, s, true));
    double eps = test.argument("eps", random.chance(70) ? 1e-5f : 1e-3f);
    Layout layout{s.N, s.C, s.pixels(), false};
    std::vector<int> shape{s.N, s.H, s.W, s.C};
    Array& x = test.input("x", float_type(half), shape);
    Array& residual = test.input("residual", float_type(half), shape, random.chance(40));
    Norm norm = norm_of(test, s.C);
    Array& mean = again ? test.input("mean", Type::FP32, {s.N, s.C}) : test.output("mean", Type::FP32, {s.N, s.C});
    Array& rstd = again ? test.input("rstd", Type::FP32, {s.N, s.C}) : test.output("rstd", Type::FP32, {s.N, s.C});
    Array& y = test.output("y", float_type(half), {s.N, s.H + 2 * border, s.W + 2 * border, s.C});
    fill_lines(x, layout, random, 40);
    fill(residual, random);
    if (again) fill(mean, random);
    for (int64_t i = 0; again && i < rstd.count(); i++) rstd.set(i, 1.25 + random.unit());
    test.run("fcg_norm", [&](int threads) {
        return fcg_norm(half, x.data(), residual.data(), y.data(), norm.scale.floats(), norm.shift.floats(),
                        mean.floats(), rstd.floats(), again, s.N, s.H, s.W, s.C, border, norm.activation,
                        float(norm.slope), float(eps), threads);
    });
    Sums sums{double(least(s.pixels(), 64)), double(parts_of(s.pixels(), 64))};
    Results results = expect(x, residual, layout, norm, [&](int n, int c) {
        int64_t i = int64_t(n) * s.C + c;
        if (again) return Moments::given(mean[i], rstd[i]);
        return moments(layout.line(x, n, c), eps, sums);
    });
    test.check(mean, results.mean);
    test.check(rstd, results.rstd);
    test.check(y, with_border(results.y, s, border));
}

inline void check_norm_lines(Case& test) {
    Random& random = test.random;
    Layout layout = random_planes(test);
    int N = layout.N, C = layout.C, P = layout.P;
    bool half = random.chance(50);
    double eps = test.argument("eps", random.chance(70) ? 1e-5f : 1e-3f);
    Array& x = test.input("x", float_type(half), layout.shape());
    Array& residual = test.input("residual", float_type(half), layout.shape(), random.chance(40));
    Norm norm = norm_of(test, C);
    Array& mean = test.output("mean", Type::FP32, {N, C});
    Array& rstd = test.output("rstd", Type::FP32, {N, C});
    Array& y = test.output("y", float_type(half), layout.shape());
    fill_lines(x, layout, random, 40);
    fill(residual, random);
    test.run("fcg_norm_lines", [&](int threads) {
        return fcg_norm_lines(half, x.data(), residual.data(), y.data(), norm.scale.floats(), norm.shift.floats(),
                              mean.floats(), rstd.floats(), N, C, P, norm.activation, float(norm.slope), float(eps),
                              threads);
    });
    // Each lane sums its numbers of a chunk of 1024, and then the lanes are added up in pairs.
    Sums sums{double(parts_of(least(P, 1024), LANES) + pairs(LANES)), double(parts_of(P, 1024))};
    Results results = expect(x, residual, layout, norm,
                             [&](int n, int c) { return moments(layout.line(x, n, c), eps, sums); });
    test.check(mean, results.mean);
    test.check(rstd, results.rstd);
    test.check(y, results.y);
}

}  // namespace norm
