// Random sizes and numbers.
#pragma once
#include "case.h"

// The sizes of images [N, H, W, C].
struct Size {
    int N, H, W, C;
    int pixels() const { return H * W; }
    int64_t count() const { return int64_t(N) * H * W * C; }
};

// 1 to `most`: small ones, and those around the lengths of vectors.
inline int channels(Random& random, int most) {
    int count = random.between(1, 8);
    if (random.chance(60)) count = random.between(1, 5) * 16 + random.between(-3, 3);
    if (random.chance(20)) count = random.between(1, 70);
    return count < most ? count : random.between(1, most);
}

inline int side(Random& random, int first) {
    if (random.chance(10)) return first;
    if (random.chance(15)) return first + random.between(0, 150);
    return first + random.between(0, 12);
}

// Sizes of at most `numbers` numbers, from one pixel on: a few large ones, or many channels. Sides are at least `side`.
inline Size image_size(Case& test, int64_t numbers, int first = 1, int most_channels = 70) {
    Random& random = test.random;
    Size s{random.between(1, 3), side(random, first), side(random, first), channels(random, most_channels)};
    // Keep what fits, and cut one of the others.
    while (s.count() > numbers) {
        int* cut[] = {&s.N, &s.H, &s.W, &s.C};
        int* chosen = cut[random.between(0, 3)];
        int least = chosen == &s.H || chosen == &s.W ? first : 1;
        *chosen = *chosen * 3 / 4 > least ? *chosen * 3 / 4 : least;
    }
    test.argument("N", s.N);
    test.argument("H", s.H);
    test.argument("W", s.W);
    test.argument("C", s.C);
    return s;
}

// A border that is smaller than the image if it is reflected.
inline int border_of(Case& test, const Size& s, bool reflect) {
    int most = 4;
    if (reflect && s.H - 1 < most) most = s.H - 1;
    if (reflect && s.W - 1 < most) most = s.W - 1;
    return test.random.between(0, most);
}

// Fills an array with numbers of a random kind: of one magnitude, of many, or far from 0.
inline void fill(Array& array, Random& random) {
    if (!array.present()) return;
    int kind = random.between(0, 3);
    double far = random.scaled(8);
    for (int64_t i = 0; i < array.count(); i++) {
        double value = kind == 0 ? random.scaled(12) : random.unit();
        if (kind == 1) value += far;
        if (random.chance(3)) value = random.chance(50) ? 0.0 : -0.0;
        array.set(i, value);
    }
}

// Fills an array with whole numbers that bf16 has.
inline void fill_whole(Array& array, Random& random) {
    for (int64_t i = 0; array.present() && i < array.count(); i++) array.set(i, random.between(-256, 256));
}
