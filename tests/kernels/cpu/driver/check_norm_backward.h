// The gradients of instance norm in channels_last and of planes.
#pragma once
#include "kernels.h"
#include "norms.h"
#include "vectors.h"

namespace norm_backward {

// A number with a bound of its error.
struct Bounded {
    double value = 0, error = 0;
    double most() const { return std::fabs(value) + error; }
};

struct Pixel {
    double xhat;
    Bounded dz;
};

// xhat = (x - mean) * rstd rounds twice, and z = xhat * scale + shift twice more. Where the sign of z is uncertain for
// that reason, dz can be either side's.
inline Pixel pixel(double x, double g, double mean, double rstd, const Norm& norm, int c) {
    double xhat = (x - mean) * rstd, product = xhat * norm.scale_of(c), shift = norm.shift_of(c), z = product + shift;
    if (norm.activation == 0) return {xhat, {g, 0}};
    double slope = norm.activation == 2 ? norm.slope : 0;
    double uncertainty = growth(4) * (std::fabs(product) + std::fabs(shift));
    Bounded dz{z > 0 ? g : slope == 0 ? 0 : g * slope, z > 0 ? 0 : growth(1) * std::fabs(g * slope)};
    if (std::fabs(z) <= uncertainty && uncertainty > 0) dz.error += std::fabs(g * (1 - slope));
    return {xhat, dz};
}

// The sums of dz and of dz * xhat over a line. A number goes through `additions` additions; of a product, its two
// factors' four roundings come on top.
struct LineSums {
    Bounded sum, product;
    LineSums(const std::vector<Pixel>& line, double additions) {
        for (const Pixel& at : line) {
            double x = std::fabs(at.xhat);
            sum.value += at.dz.value;
            product.value += at.dz.value * at.xhat;
            sum.error += at.dz.error + growth(additions) * at.dz.most();
            product.error += at.dz.error * x + growth(additions + 4) * at.dz.most() * x + underflow(4);
        }
    }
};

// dx = a * dz - b - c * xhat, with a = rstd * scale, b = a * sum / P and c = a * product / P. The longest chain is that
// of c * xhat: a, the product with the sum, 1 / P and the product with that, two of xhat, one of c * xhat, and two
// differences.
inline Bounded gradient_of(const Pixel& at, const LineSums& sums, double a, double P) {
    double x = std::fabs(at.xhat), size = std::fabs(a);
    double b = size * sums.sum.most() / P, c = size * sums.product.most() / P * x;
    Bounded dx{a * at.dz.value - a * sums.sum.value / P - a * sums.product.value / P * at.xhat, 0};
    dx.error = size * at.dz.error + size * sums.sum.error / P + size * sums.product.error / P * x +
               growth(9) * (size * at.dz.most() + b + c) + underflow(9);
    return dx;
}

struct Arguments {
    const Array &x, &mean, &rstd;
    const Norm& norm;
    const Layout& layout;
    // The output's gradient, in the layout of x.
    std::vector<double> g;
    double additions;
};

inline void check_results(Case& test, const Arguments& of, const Array& dx, const Array& total) {
    const Layout& layout = of.layout;
    Expected gradients(dx.count()), sums(total.count());
    for (int n = 0; n < layout.N; n++)
        for (int c = 0; c < layout.C; c++) {
            int64_t line = int64_t(n) * layout.C + c;
            std::vector<Pixel> pixels;
            for (int p = 0; p < layout.P; p++) {
                int64_t i = layout.at(n, p, c);
                pixels.push_back(pixel(of.x[i], of.g[size_t(i)], of.mean[line], of.rstd[line], of.norm, c));
            }
            LineSums line_sums(pixels, of.additions);
            sums.set(line, line_sums.sum.value, line_sums.sum.error);
            sums.set(int64_t(layout.N) * layout.C + line, line_sums.product.value, line_sums.product.error);
            for (int p = 0; p < layout.P; p++) {
                Bounded d = gradient_of(pixels[size_t(p)], line_sums, of.rstd[line] * of.norm.scale_of(c), layout.P);
                gradients.set(layout.at(n, p, c), d.value, d.error);
            }
        }
    test.check(total, sums);
    test.check(dx, gradients);
}

// Means of about the right size and random 1 / sigma: the gradient is defined for any.
inline void fill_statistics(const Array& x, const Layout& layout, Array& mean, Array& rstd, Random& random) {
    for (int n = 0; n < layout.N; n++)
        for (int c = 0; c < layout.C; c++) {
            int64_t i = int64_t(n) * layout.C + c;
            double first = x[layout.at(n, 0, c)];
            mean.set(i, std::isfinite(first) ? first : random.unit());
            rstd.set(i, std::ldexp(1.25 + random.unit(), random.between(-4, 4)));
        }
}

inline void check_norm_backward(Case& test) {
    Random& random = test.random;
    Size s = image_size(test, 10000);
    bool half = random.chance(50);
    int border = test.argument("border", border_of(test, s, true)), width = s.W + 2 * border;
    Layout layout{s.N, s.C, s.pixels(), false};
    Array& g = test.input("g", float_type(half), {s.N, s.H + 2 * border, width, s.C});
    Array& x = test.input("x", float_type(half), {s.N, s.H, s.W, s.C});
    Array& mean = test.input("mean", Type::FP32, {s.N, s.C});
    Array& rstd = test.input("rstd", Type::FP32, {s.N, s.C});
    Norm norm = norm_of(test, s.C);
    Array& dx = test.output("dx", float_type(half), {s.N, s.H, s.W, s.C});
    Array& total = test.output("total", Type::FP32, {2, s.N, s.C});
    auto inside = [&](int n, int p, int c) {
        int64_t row = int64_t(n) * (s.H + 2 * border) + p / s.W + border;
        return (row * width + p % s.W + border) * s.C + c;
    };
    std::vector<double> gradient;
    // The border of g keeps the NaN with which it was filled: it must not be read.
    for (int n = 0; n < s.N; n++)
        for (int p = 0; p < s.pixels(); p++)
            for (int c = 0; c < s.C; c++) {
                g.set(inside(n, p, c), random.scaled(4));
                gradient.push_back(g[inside(n, p, c)]);
            }
    fill_lines(x, layout, random, 8);
    fill_statistics(x, layout, mean, rstd, random);
    test.run("fcg_norm_backward", [&](int threads) {
        return fcg_norm_backward(half, g.data(), x.data(), mean.floats(), rstd.floats(), norm.scale.floats(),
                                 norm.shift.floats(), dx.data(), total.floats(), s.N, s.H, s.W, s.C, border,
                                 norm.activation, float(norm.slope), threads);
    });
    // Parts of 64 pixels of a row; of these, groups of 64; of those, all.
    int64_t lines = s.H * parts_of(s.W, 64);
    double additions = double(least(s.W, 64) + least(lines, 64) + parts_of(lines, 64));
    check_results(test, {x, mean, rstd, norm, layout, gradient, additions}, dx, total);
}

inline void check_norm_backward_lines(Case& test) {
    Random& random = test.random;
    Layout layout = random_planes(test);
    int N = layout.N, C = layout.C, P = layout.P;
    bool half = random.chance(50);
    Array& g = test.input("g", float_type(half), layout.shape());
    Array& x = test.input("x", float_type(half), layout.shape());
    Array& mean = test.input("mean", Type::FP32, {N, C});
    Array& rstd = test.input("rstd", Type::FP32, {N, C});
    Norm norm = norm_of(test, C);
    Array& dx = test.output("dx", float_type(half), layout.shape());
    Array& total = test.output("total", Type::FP32, {2, N, C});
    fill_lines(g, layout, random, 8);
    fill_lines(x, layout, random, 8);
    fill_statistics(x, layout, mean, rstd, random);
    test.run("fcg_norm_backward_lines", [&](int threads) {
        return fcg_norm_backward_lines(half, g.data(), x.data(), mean.floats(), rstd.floats(), norm.scale.floats(),
                                       norm.shift.floats(), dx.data(), total.floats(), N, C, P, norm.activation,
                                       float(norm.slope), threads);
    });
    // Each lane sums parts of 64 of its numbers; these are added up, and then the lanes in pairs.
    int64_t vectors = parts_of(P, LANES);
    double additions = double(least(vectors, 64) + parts_of(vectors, 64) + pairs(LANES));
    std::vector<double> gradient;
    for (int64_t i = 0; i < g.count(); i++) gradient.push_back(g[i]);
    check_results(test, {x, mean, rstd, norm, layout, gradient, additions}, dx, total);
}

}  // namespace norm_backward
