// What instance norms in channels_last, those of planes, and their gradients have in common.
#pragma once
#include "vectors.h"

enum Activation { NONE, RELU, LEAKY_RELU };

struct Size {
    int N, H, W, C;
    int64_t pixels() const { return int64_t(H) * W; }
};

struct Output {
    const float *scale, *shift;  // [C], or null
    int activation;
    float slope;
    int border;
};

// Images whose pixels follow one another within a row: where the first row begins, and how many numbers apart rows and
// images are.
template <class T>
struct Rows {
    const T* first;
    size_t row, image;
    const T* at(size_t n, size_t h) const { return first + n * image + h * row; }
};

// Mean and 1 / sigma [N, C].
struct Statistics {
    const float *mean, *rstd;
};

inline Floats activated(Floats z, int activation, float slope) {
    // Written so that NaN stays NaN.
    if (activation == RELU) return z < Floats{} ? Floats{} : z;
    if (activation == LEAKY_RELU) return z > Floats{} ? z : z * slope;
    return z;
}

// The gradient of z = xhat * scale + shift, from that of the output.
inline Floats before_activation(Floats d, Floats z, int activation, float slope) {
    if (activation == RELU) return z > Floats{} ? d : Floats{};
    if (activation == LEAKY_RELU) return z > Floats{} ? d : d * slope;
    return d;
}

// What is the same for all pixels of LANES channels of an image.
struct Channels {
    Floats mean, rstd, scale, shift;
    Channels(const Statistics& s, const Output& out, size_t n, int c, int C) {
        mean = load(s.mean + n * C + c, C - c);
        rstd = load(s.rstd + n * C + c, C - c);
        scale = out.scale ? load(out.scale + c, C - c) : splat(1);
        shift = out.shift ? load(out.shift + c, C - c) : Floats{};
    }
};

// The coefficients of a gradient: dx = a * dz - b - c * xhat.
struct Coefficients {
    Floats a, b, c;
    Coefficients(const Channels& of, Floats sum, Floats product, float pixels) {
        a = of.rstd * of.scale;
        b = a * sum * (1 / pixels);
        c = a * product * (1 / pixels);
    }
};
