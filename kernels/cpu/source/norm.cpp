// Instance norm in channels_last, with scale, shift, activation, residual and a reflected border.
#include "norm.h"

#include <cmath>

#include "border.h"
#include "kernels.h"
#include "scratch.h"
#include "threads.h"

namespace {

// Pixels that share one mean while the sum of squares is taken.
constexpr int CHUNK = 64;
// Vectors of channels that are read together, so that a chunk stays in the first cache.
constexpr int WIDE = 4;

// Writes the mean of `count` pixels of V vectors of channels, and the sum of their squared differences from it.
//
// The differences are taken from a first mean, which is off by rounding errors, and then corrected. So equal
// pixels have exactly their value as the mean, and no variance.
template <int V, class T>
void chunk_moments(const T* x, int count, int C, int lanes, float* mean, float* squares) {
    if (V > 1) lanes = LANES;
    Floats about[V] = {}, sum[V] = {}, sum_of_squares[V] = {};
    for (int i = 0; i < count; i++)
        for (int v = 0; v < V; v++) about[v] += load(x + size_t(i) * C + v * LANES, lanes);
    for (int v = 0; v < V; v++) about[v] *= 1.0f / count;
    for (int i = 0; i < count; i++)
        for (int v = 0; v < V; v++) {
            Floats d = load(x + size_t(i) * C + v * LANES, lanes) - about[v];
            sum[v] += d;
            sum_of_squares[v] += d * d;
        }
    for (int v = 0; v < V; v++) {
        Floats correction = sum[v] * (1.0f / count);
        store(mean + v * LANES, about[v] + correction, lanes);
        store(squares + v * LANES, sum_of_squares[v] - sum[v] * correction, lanes);
    }
}

inline int64_t chunks_of(int64_t pixels) { return (pixels + CHUNK - 1) / CHUNK; }

inline int chunk_size(int64_t k, int64_t pixels) {
    int64_t rest = pixels - k * CHUNK;
    return rest < CHUNK ? int(rest) : CHUNK;
}

// Joins the moments of the chunks of one image by Chan's rule, and writes mean and 1 / sigma of `lanes` channels.
void join(const float* parts, int64_t pixels, int C, int lanes, float eps, float* mean, float* rstd) {
    // The variance is summed up rather than the squares, which can be infinite.
    Floats total{}, variance{};
    float count = 0, share = 1.0f / pixels;
    for (int64_t k = 0; k < chunks_of(pixels); k++) {
        const float* part = parts + size_t(k) * 2 * C;
        float size = chunk_size(k, pixels), sum = count + size;
        Floats d = load(part, lanes) - total;
        total += d * (size / sum);
        Floats own = load(part + C, lanes);
        // The first difference is the mean itself, whose square can be infinite.
        variance += count > 0 ? own * share + d * d * (count * size / sum * share) : own * share;
        count = sum;
    }
    // Rounding errors can make the variance of equal pixels negative. NaN stays NaN.
    variance = variance < Floats{} ? Floats{} : variance;
    Floats r = variance + eps;
    for (int i = 0; i < LANES; i++) r[i] = 1.0f / std::sqrt(r[i]);
    store(mean, total, lanes);
    store(rstd, r, lanes);
}

// The floats of memory that `moments` needs.
inline size_t moments_size(const Size& s) { return size_t(s.N) * chunks_of(s.pixels()) * 2 * s.C; }

template <class T>
void moments(const T* x, Size s, float eps, float* mean, float* rstd, float* parts, int threads) {
    int C = s.C;
    int64_t P = s.pixels(), chunks = chunks_of(P);
    parallel_for(int64_t(s.N) * chunks, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            float* part = parts + size_t(i) * 2 * C;
            int64_t k = i % chunks;
            int count = chunk_size(k, P), c = 0;
            const T* first = x + (size_t(i / chunks) * P + size_t(k) * CHUNK) * C;
            for (; c + WIDE * LANES <= C; c += WIDE * LANES)
                chunk_moments<WIDE>(first + c, count, C, LANES, part + c, part + C + c);
            for (; c < C; c += LANES) chunk_moments<1>(first + c, count, C, C - c, part + c, part + C + c);
        }
    });
    int groups = (C + LANES - 1) / LANES;
    parallel_for(int64_t(s.N) * groups, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            size_t n = i / groups, c = size_t(i % groups) * LANES;
            join(parts + n * chunks * 2 * C + c, P, C, C - int(c), eps, mean + n * C + c, rstd + n * C + c);
        }
    });
}

template <class T>
void apply(const T* x, const T* residual, T* y, Size s, Output out, const float* mean, const float* scale,
           int threads) {
    int p = out.border, C = s.C, rows = s.H + 2 * p;
    size_t line = size_t(s.W + 2 * p) * C;
    parallel_for(int64_t(s.N) * s.H, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            size_t n = i / s.H, h = i % s.H;
            T* row = y + (n * rows + h + p) * line + size_t(p) * C;
            for (int w = 0; w < s.W; w++) {
                size_t offset = (size_t(i) * s.W + w) * C;
                for (int c = 0; c < C; c += LANES) {
                    int lanes = C - c;
                    Floats z = load(x + offset + c, lanes) - load(mean + n * C + c, lanes);
                    z *= load(scale + n * C + c, lanes);
                    if (out.shift) z += load(out.shift + c, lanes);
                    z = activated(z, out.activation, out.slope);
                    if (residual) z += load(residual + offset + c, lanes);
                    store(row + size_t(w) * C + c, z, lanes);
                }
            }
            reflect_row(row, s.W, C, p);
        }
    });
    parallel_for(int64_t(s.N) * p, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            int k = int(i % p) + 1;
            T* image = y + size_t(i / p) * rows * line;
            memcpy(image + (p - k) * line, image + (p + k) * line, line * sizeof(T));
            memcpy(image + (p + s.H - 1 + k) * line, image + (p + s.H - 1 - k) * line, line * sizeof(T));
        }
    });
}

// again: mean and rstd are given.
template <class T>
int norm(const T* x, const T* residual, T* y, Size s, Output out, float eps, bool again, float* mean, float* rstd,
         int threads) {
    size_t channels = size_t(s.N) * s.C, parts = again ? 0 : moments_size(s);
    float* memory = scratch_for_call().floats(parts + channels);
    if (!memory) return 1;
    if (!again) moments(x, s, eps, mean, rstd, memory, threads);
    float* scales = memory + parts;
    for (size_t i = 0; i < channels; i++) scales[i] = out.scale ? rstd[i] * out.scale[i % s.C] : rstd[i];
    apply(x, residual, y, s, out, mean, scales, threads);
    return 0;
}

}  // namespace

int fcg_norm(int half, const void* x, const void* residual, void* y, const float* scale, const float* shift,
             float* mean, float* rstd, int again, int N, int H, int W, int C, int border, int activation, float slope,
             float eps, int threads) {
    Size s{N, H, W, C};
    Output out{scale, shift, activation, slope, border};
    if (half)
        return norm((const bf16*)x, (const bf16*)residual, (bf16*)y, s, out, eps, again, mean, rstd, threads);
    return norm((const float*)x, (const float*)residual, (float*)y, s, out, eps, again, mean, rstd, threads);
}
