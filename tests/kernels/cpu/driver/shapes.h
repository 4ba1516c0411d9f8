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
int channels(Random& random, int most);

// Sizes of at most `numbers` numbers, from one pixel on: a few large ones, or many channels. Sides are at least `side`.
Size image_size(Case& test, int64_t numbers, int side = 1, int most_channels = 70);

// A border that is smaller than the image if it is reflected.
int border_of(Case& test, const Size& s, bool reflect);

// Fills an array with numbers of a random kind: of one magnitude, of many, or far from 0.
void fill(Array& array, Random& random);
