// The gradients of the weights of 3x3 convolutions, by Winograd's algorithm.
#pragma once
#include "kernels.h"
#include "winograd_sizes.h"

namespace winograd_gradient {

using namespace winograd_sizes;

// The sizes [O, 3, 3, C] of the gradient of the weights.
inline Image sizes_of(const Image& x, const Image& g) {
    std::vector<Points> sums(size_t(g.C) * x.C, Points(POINTS, 0));
    for (int n = 0; n < g.N; n++)
        for (int h = 0; h < g.H; h += TILE)
            for (int w = 0; w < g.W; w += TILE) {
                std::vector<Points> windows;
                for (int c = 0; c < x.C; c++) windows.push_back(window(x, n, h, w, c));
                for (int o = 0; o < g.C; o++) {
                    Points gradients = tile(g, n, h, w, o);
                    for (int c = 0; c < x.C; c++)
                        for (size_t k = 0; k < POINTS; k++)
                            sums[size_t(o) * x.C + c][k] += gradients[k] * windows[size_t(c)][k];
                }
            }
    Image sizes(g.C, 3, 3, x.C);
    for (int o = 0; o < g.C; o++)
        for (int c = 0; c < x.C; c++) {
            Points kernel = back(sums[size_t(o) * x.C + c]);
            for (int k = 0; k < 9; k++) sizes.at(o, k / 3, k % 3)[c] = kernel[size_t(k)];
        }
    return sizes;
}

inline void check_winograd_gradient(Case& test) {
    Random& random = test.random;
    Size s = random.chance(10) ? image_size(test, 8000, 50, 2) : image_size(test, random.chance(20) ? 3000 : 700, 3);
    bool half = random.chance(50), reflect = test.argument("reflect", random.chance(50));
    bool add = test.argument("add", random.chance(50));
    int pad = test.argument("pad", border_of(test, s, reflect));
    int O = test.argument("O", s.count() > 2000 ? random.between(1, 6) : channels(random, 70));
    Size of_g{s.N, s.H + 2 * pad - 2, s.W + 2 * pad - 2, O};
    Array& g = test.input("g", float_type(half), {s.N, of_g.H, of_g.W, O});
    Array& x = test.input("x", float_type(half), {s.N, s.H, s.W, s.C});
    Array& w = test.output("w", Type::FP32, {O, 3, 3, s.C});
    fill(g, random);
    fill(x, random);
    if (add) fill(w, random);
    Expected expected(w.count());
    for (int64_t i = 0; add && i < w.count(); i++) expected.set(i, w[i], 0);
    test.run("fcg_winograd_gradient", [&](int threads) {
        return fcg_winograd_gradient(half, g.data(), x.data(), w.floats(), s.N, s.H, s.W, s.C, O, pad, reflect, add,
                                     threads);
    });
    Image image = padded(Image(x, s), pad, reflect), gradient(g, of_g);
    Image exact = weight_gradient(image, gradient, 3, 1), sizes = sizes_of(image, gradient);
    // Blocks of at most 256 tiles are summed in parts of 64, one after the other.
    int64_t tiles = s.N * parts_of(of_g.H, TILE) * parts_of(of_g.W, TILE);
    double additions = double(least(tiles, 64) + 4 * parts_of(tiles, 256));
    double c = ROUNDINGS_WINDOW + ROUNDINGS_GRADIENT + ROUNDINGS_BACK + additions + 1;
    for (int64_t i = 0; i < w.count(); i++) {
        double before = expected.value[size_t(i)], size = sizes.numbers[size_t(i)] + std::fabs(before);
        expected.set(i, before + exact.numbers[size_t(i)], growth(c) * size + underflow(c));
    }
    test.check(w, expected);
}

}  // namespace winograd_gradient
