// What the checks of norms and of their gradients have in common: lines of pixels, and random statistics.
#pragma once
#include <limits>

#include "shapes.h"

// Where channel c of pixel p of image n stands, in channels_last or, as planes, in [N, C, P]. A single image in
// channels_last can have `gap` numbers between its rows of `width` pixels.
struct Layout {
    int N, C, P;
    bool planes;
    int gap = 0, width = 1;
    int64_t at(int n, int p, int c) const {
        return planes ? (int64_t(n) * C + c) * P + p : (int64_t(n) * P + p) * C + c + int64_t(p / width) * gap;
    }
    std::vector<int> shape() const { return planes ? std::vector<int>{N, C, P} : std::vector<int>{N, P, C}; }
    std::vector<double> line(const Array& array, int n, int c) const;
};

// The arguments of a norm, beside its image.
struct Norm {
    int activation;
    double slope;
    Array &scale, &shift;
    double scale_of(int c) const { return scale.present() ? scale[c] : 1; }
    double shift_of(int c) const { return shift.present() ? shift[c] : 0; }
};

inline std::vector<double> Layout::line(const Array& array, int n, int c) const {
    std::vector<double> numbers;
    for (int p = 0; p < P; p++) numbers.push_back(array[at(n, p, c)]);
    return numbers;
}

inline Norm norm_of(Case& test, int C) {
    Random& random = test.random;
    int activation = test.argument("activation", random.between(0, 2));
    double slope = test.argument("slope", random.chance(50) ? 0.25f : float(random.unit()));
    Array& scale = test.input("scale", Type::FP32, {C}, random.chance(70));
    Array& shift = test.input("shift", Type::FP32, {C}, random.chance(70));
    fill(scale, random);
    fill(shift, random);
    if (shift.present() && random.chance(10)) shift.set_nan(random.between(0, C - 1));
    return {activation, slope, scale, shift};
}

// A random number of pixels and channels for the functions that work on planes.
inline Layout random_planes(Case& test) {
    Random& random = test.random;
    int N = test.argument("N", random.between(1, 3)), C = channels(random, 70);
    int P = random.chance(30) ? random.between(1, 5000) : random.between(1, 130);
    if (P > 1000) C = random.between(1, 3);
    test.argument("C", C);
    test.argument("P", P);
    return {N, C, P, true};
}

// Number p of a line of the given kind.
inline double number(int kind, int p, double far, double special, int at, Random& random) {
    switch (kind) {
        case 0: return far;
        case 1: return far + random.unit() / 16;
        case 2: return p == at ? far : 0;
        case 3: return random.scaled(10);
        case 4: return p == at ? special : random.unit();
        default: return random.unit();
    }
}

// Fills the channels of images: some are constant, far from 0, mostly 0, or contain NaN or infinity. Numbers far from
// 0 reach 2^range.
inline void fill_lines(Array& array, const Layout& layout, Random& random, int range) {
    if (!array.present()) return;
    constexpr double INFINITE = std::numeric_limits<double>::infinity();
    constexpr double SPECIAL[] = {std::numeric_limits<double>::quiet_NaN(), INFINITE, -INFINITE};
    for (int n = 0; n < layout.N; n++)
        for (int c = 0; c < layout.C; c++) {
            int kind = random.between(0, 12), at = random.between(0, layout.P - 1);
            double far = random.scaled(random.chance(40) ? range : 8), special = SPECIAL[random.between(0, 2)];
            for (int p = 0; p < layout.P; p++)
                array.set(layout.at(n, p, c), number(kind, p, far, special, at, random));
        }
}
