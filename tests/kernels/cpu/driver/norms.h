// What the checks of norms and of their gradients have in common: lines of pixels, and random statistics.
#pragma once
#include "shapes.h"

// Where channel c of pixel p of image n stands, in channels_last or, as planes, in [N, C, P].
struct Layout {
    int N, C, P;
    bool planes;
    int64_t at(int n, int p, int c) const {
        return planes ? (int64_t(n) * C + c) * P + p : (int64_t(n) * P + p) * C + c;
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

Norm norm_of(Case& test, int C);

// A random number of pixels and channels for the functions that work on planes.
Layout random_planes(Case& test);

// Fills the channels of images: some are constant, far from 0, mostly 0, or contain NaN or infinity. Numbers far from
// 0 reach 2^range.
void fill_lines(Array& array, const Layout& layout, Random& random, int range);
