// Convolutions to images with few channels, by their definition.
#include "direct.h"
#include "kernels.h"
#include "threads.h"
#include "vectors.h"

namespace {

using direct::Shape;

// The largest group of outputs that are computed together, and the pixels whose sums for G outputs fit into the
// registers.
constexpr int GROUP = 3;
constexpr int pixels_for(int G) { return (REGISTERS == 32 ? 24 : 12) / G; }

// Adds the products of a vector of input channels. `lanes` matters only if FULL is false.
template <bool FULL, int G, int P, class T>
inline void add_products(const T* x, size_t step, const float* u, int lanes, Floats (&sums)[P][G]) {
    Floats weights[G];
#pragma GCC unroll 3
    for (int g = 0; g < G; g++) weights[g] = load(u + g * LANES);
#pragma GCC unroll 24
    for (int p = 0; p < P; p++) {
        Floats value = FULL ? load(x + p * step) : load(x + p * step, lanes);
#pragma GCC unroll 3
        for (int g = 0; g < G; g++) sums[p][g] += value * weights[g];
    }
}

// G outputs of P pixels, to out [P, G]: lanes are input channels, which are summed at the end.
template <int G, int P, class T>
void few_pixels(const T* x, const float* u, const Shape& s, float* out) {
    Floats sums[P][G] = {};
    size_t step = size_t(s.stride) * s.C;
    for (int i = 0; i < s.k; i++)
        for (int j = 0; j < s.k; j++) {
            const T* from = x + (size_t(i) * s.W + j) * s.C;
            int c = 0;
            for (; c + LANES <= s.C; c += LANES, u += G * LANES) add_products<true>(from + c, step, u, LANES, sums);
            if (c < s.C) {
                add_products<false>(from + c, step, u, s.C - c, sums);
                u += G * LANES;
            }
        }
    Floats parts[P * G];
    // Unrolled as well: an index that is not constant would keep the sums in memory.
#pragma GCC unroll 24
    for (int p = 0; p < P; p++)
#pragma GCC unroll 3
        for (int g = 0; g < G; g++) parts[p * G + g] = sums[p][g];
#pragma GCC unroll 1
    for (int i = 0; i < P * G; i++) out[i] = sum(parts[i]);
}

inline void put(float* y, float value) { *y = value; }
inline void put(bf16* y, float value) { store(y, splat(value), 1); }

template <int G, class T, class To>
void few(const T* x, const float* u, const float* bias, To* y, const Shape& s, int threads) {
    constexpr int P = pixels_for(G);
    parallel_for(int64_t(s.N) * s.rows(), threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            const T* line = x + s.line(row);
            To* to = y + size_t(row) * s.columns() * s.O;
            for (int w = 0, count; w < s.columns(); w += count) {
                float out[P * G];
                const T* from = line + size_t(w) * s.stride * s.C;
                count = s.columns() - w < P ? 1 : P;
                if (count == P)
                    few_pixels<G, P>(from, u, s, out);
                else
                    few_pixels<G, 1>(from, u, s, out);
                for (int p = 0; p < count; p++)
                    for (int g = 0; g < G; g++)
                        put(to + size_t(w + p) * s.O + g, out[p * G + g] + (bias ? bias[g] : 0));
            }
        }
    });
}

// The outputs in groups.
template <class T, class To>
void few(const T* x, const float* u, const float* bias, To* y, const Shape& s, int threads) {
    for (int o = 0; o < s.O; o += GROUP) {
        const float* offset = bias ? bias + o : nullptr;
        int group = s.O - o < GROUP ? s.O - o : GROUP;
        switch (group) {
            case 1: few<1>(x, u, offset, y + o, s, threads); break;
            case 2: few<2>(x, u, offset, y + o, s, threads); break;
            case 3: few<3>(x, u, offset, y + o, s, threads); break;
        }
        u += size_t(s.k) * s.k * round_up(s.C, LANES) * group;
    }
}

}  // namespace

int64_t fcg_few_size(int O, int C, int k) { return int64_t(k) * k * round_up(C, LANES) * O; }

int fcg_few_weight(const float* w, float* u, int O, int C, int k, int) {
    for (int first = 0; first < O; first += GROUP)
        for (int at = 0; at < k * k; at++)
            for (int c = 0; c < C; c += LANES)
                for (int o = first; o < O && o < first + GROUP; o++, u += LANES)
                    store(u, load(w + (size_t(o) * k * k + at) * C + c, C - c));
    return 0;
}

int fcg_few(int half, int half_out, const void* x, const float* u, const float* bias, void* y, int N, int H, int W,
             int C, int O, int k, int stride, int threads) {
    Shape s{N, H, W, C, O, k, stride};
    if (!half)
        few((const float*)x, u, bias, (float*)y, s, threads);
    else if (half_out)
        few((const bf16*)x, u, bias, (bf16*)y, s, threads);
    else
        few((const bf16*)x, u, bias, (float*)y, s, threads);
    return 0;
}
