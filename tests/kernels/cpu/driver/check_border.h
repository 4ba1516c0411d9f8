// Borders, and the gradient of a reflected one.
#pragma once
#include "image.h"
#include "kernels.h"

namespace border {

inline void check_pad(Case& test) {
    Size s = image_size(test, 20000);
    bool half = test.random.chance(50), wide = test.argument("wide", test.random.chance(50));
    bool reflect = test.argument("reflect", test.random.chance(50));
    int p = test.argument("p", border_of(test, s, reflect));
    Array& x = test.input("x", float_type(half), {s.N, s.H, s.W, s.C});
    Array& y = test.output("y", float_type(half && !wide), {s.N, s.H + 2 * p, s.W + 2 * p, s.C});
    fill(x, test.random);
    test.run("fcg_pad", [&](int threads) {
        return fcg_pad(half, wide, x.data(), y.data(), s.N, s.H, s.W, s.C, p, reflect, threads);
    });
    Image exact = padded(Image(x, s), p, reflect);
    for (int64_t i = 0; i < y.count(); i++)
        if (y[i] != exact.numbers[size_t(i)]) test.fail(y.place(i) + " is not the number that the border shows");
}

// The gradient of an image from that of the image with a border of p pixels.
inline Image folded(const Image& g, int p) {
    Image y(g.N, g.H - 2 * p, g.W - 2 * p, g.C);
    for (int n = 0; n < g.N; n++)
        for (int h = 0; h < g.H; h++)
            for (int w = 0; w < g.W; w++) {
                double* to = y.at(n, mirrored(h - p, y.H), mirrored(w - p, y.W));
                for (int c = 0; c < g.C; c++) to[c] += g.at(n, h, w)[c];
            }
    return y;
}

// What folding in place leaves: the border, and the pixels that it does not show, are as before.
inline Expected in_place(const Image& g, const Image& y, const Image& sizes, int p, double error) {
    Expected expected(int64_t(g.numbers.size()));
    for (int64_t i = 0; i < int64_t(g.numbers.size()); i++) {
        int64_t pixel = i / g.C;
        int n = int(pixel / g.W / g.H), h = int(pixel / g.W % g.H) - p, w = int(pixel % g.W) - p;
        if (!y.has(h, w)) {
            expected.set(i, g.numbers[size_t(i)], 0);
            continue;
        }
        size_t at = size_t(y.at(n, h, w) - y.numbers.data()) + size_t(i % g.C);
        bool shown = (h >= 1 && h <= p) || (w >= 1 && w <= p) || (h <= y.H - 2 && h >= y.H - 1 - p) ||
                     (w <= y.W - 2 && w >= y.W - 1 - p);
        expected.set(i, y.numbers[at], shown ? error * sizes.numbers[at] : 0);
    }
    return expected;
}

inline void check_fold(Case& test) {
    Size s = image_size(test, 10000);
    bool half = test.random.chance(50), inside = test.argument("in_place", test.random.chance(40));
    int p = test.argument("p", border_of(test, s, true));
    Size bordered{s.N, s.H + 2 * p, s.W + 2 * p, s.C};
    std::vector<int> shape{s.N, bordered.H, bordered.W, s.C};
    Array& g = inside ? test.output("g", float_type(half), shape) : test.input("g", float_type(half), shape);
    Array& added = test.input("added", float_type(half), {s.N, s.H, s.W, s.C}, !inside && test.random.chance(50));
    Array& to = test.output("to", float_type(half), {s.N, s.H, s.W, s.C}, !inside);
    // Sums of whole numbers are exact, and in bf16 some of them lie between two numbers.
    bool whole = test.argument("whole", test.random.chance(40));
    for (Array* array : {&g, &added}) whole ? fill_whole(*array, test.random) : fill(*array, test.random);
    Image before(g, bordered), y = folded(before, p), sizes = folded(before.absolute(), p);
    test.run("fcg_fold", [&](int threads) {
        return fcg_fold(half, g.data(), added.data(), to.data(), s.N, s.H, s.W, s.C, p, threads);
    });
    // A pixel is shown at most nine times, and one more number is added.
    double error = whole ? 0 : growth(9);
    if (inside) return test.check(g, in_place(before, y, sizes, p, error));
    Expected expected(to.count());
    for (int64_t i = 0; i < to.count(); i++) {
        double more = added.present() ? added[i] : 0;
        expected.set(i, y.numbers[size_t(i)] + more, error * (sizes.numbers[size_t(i)] + std::fabs(more)));
    }
    test.check(to, expected);
}

}  // namespace border
