// What the instance norm and its gradient have in common.
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

// Mean and 1 / sigma [N, C].
struct Statistics {
    const float *mean, *rstd;
};
