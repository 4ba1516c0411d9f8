// Instance norm in channels_last, with scale, shift, activation, residual and a reflected border; and each of its two
// passes alone, over a region of an image.
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

// The pixels of a chunk: where the first is, how many there are, and how many of them its row still has. The rows after
// it have `width` pixels and begin `step` numbers after the end of the one before.
template <class T>
struct Chunk {
    const T* first;
    int count;
    int64_t in_row, width;
    size_t step;
};

// Calls body(pixel) for each pixel of a chunk.
template <class T, class Body>
inline void for_each_pixel(const Chunk<T>& chunk, int C, const Body& body) {
    const T* pixel = chunk.first;
    int64_t run = chunk.in_row;
    for (int left = chunk.count;; run = chunk.width, pixel += chunk.step) {
        int pixels = left < run ? left : int(run);
        for (int i = 0; i < pixels; i++, pixel += C) body(pixel);
        left -= pixels;
        if (!left) return;
    }
}

// Writes the mean of the pixels of V vectors of channels, and the sum of their squared differences from it.
//
// The differences are taken from a first mean, which is off by rounding errors, and then corrected. So equal
// pixels have exactly their value as the mean, and no variance: their differences are all the same small multiple of a
// unit in the last place, so that sums are exact, and so is the quotient. A product with 1 / count would not be.
template <int V, class T>
void chunk_moments(const Chunk<T>& x, int C, int lanes, float* mean, float* squares) {
    if (V > 1) lanes = LANES;
    float count = float(x.count);
    Floats about[V] = {}, sum[V] = {}, sum_of_squares[V] = {};
    for_each_pixel(x, C, [&](const T* pixel) {
        for (int v = 0; v < V; v++) about[v] += load(pixel + v * LANES, lanes);
    });
    for (int v = 0; v < V; v++) about[v] *= 1 / count;
    for_each_pixel(x, C, [&](const T* pixel) {
        for (int v = 0; v < V; v++) {
            Floats d = load(pixel + v * LANES, lanes) - about[v];
            sum[v] += d;
            sum_of_squares[v] += d * d;
        }
    });
    for (int v = 0; v < V; v++) {
        Floats correction = sum[v] / count;
        store(mean + v * LANES, about[v] + correction, lanes);
        store(squares + v * LANES, sum_of_squares[v] - sum[v] * correction, lanes);
    }
}

inline int64_t chunks_of(int64_t pixels) { return (pixels + CHUNK - 1) / CHUNK; }

inline int chunk_size(int64_t k, int64_t pixels) {
    int64_t rest = pixels - k * CHUNK;
    return rest < CHUNK ? int(rest) : CHUNK;
}

// Joins the moments of the chunks of one image by Chan's rule, and writes mean and variance of `lanes` channels.
void join(const float* parts, int64_t pixels, int C, int lanes, float* mean, float* variance) {
    // The variance is summed up rather than the squares, which can be infinite.
    Floats total{}, average{};
    float count = 0, share = 1.0f / pixels;
    for (int64_t k = 0; k < chunks_of(pixels); k++) {
        const float* part = parts + size_t(k) * 2 * C;
        float size = chunk_size(k, pixels), sum = count + size;
        Floats d = load(part, lanes) - total;
        total += d * (size / sum);
        Floats own = load(part + C, lanes);
        // The first difference is the mean itself, whose square can be infinite.
        average += count > 0 ? own * share + d * d * (count * size / sum * share) : own * share;
        count = sum;
    }
    // Rounding errors can make the variance of equal pixels negative. NaN stays NaN.
    store(mean, total, lanes);
    store(variance, average < Floats{} ? Floats{} : average, lanes);
}

// The floats of memory that `moments` needs.
inline size_t moments_size(const Size& s) { return size_t(s.N) * chunks_of(s.pixels()) * 2 * s.C; }

template <class T>
void moments(const Rows<T>& x, Size s, float* mean, float* variance, float* parts, int threads) {
    int C = s.C;
    int64_t P = s.pixels(), chunks = chunks_of(P);
    // Rows without a gap are read as one.
    size_t gap = x.row - size_t(s.W) * C;
    int64_t width = gap ? s.W : P;
    parallel_for(int64_t(s.N) * chunks, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            float* part = parts + size_t(i) * 2 * C;
            int64_t k = i % chunks;
            int64_t row = k * CHUNK / width, w = k * CHUNK % width;
            Chunk<T> chunk{x.at(i / chunks, row) + size_t(w) * C, chunk_size(k, P), width - w, width, gap};
            int c = 0;
            for (; c + WIDE * LANES <= C; c += WIDE * LANES, chunk.first += WIDE * LANES)
                chunk_moments<WIDE>(chunk, C, LANES, part + c, part + C + c);
            for (; c < C; c += LANES, chunk.first += LANES) chunk_moments<1>(chunk, C, C - c, part + c, part + C + c);
        }
    });
    int groups = (C + LANES - 1) / LANES;
    parallel_for(int64_t(s.N) * groups, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            size_t n = i / groups, c = size_t(i % groups) * LANES;
            join(parts + n * chunks * 2 * C + c, P, C, C - int(c), mean + n * C + c, variance + n * C + c);
        }
    });
}

// `scale` is memory for a number of each channel of each image.
template <class T>
void apply(const Rows<T>& x, const Rows<T>& residual, T* y, Size s, Output out, const Statistics& of, float* scale,
           int threads) {
    int p = out.border, C = s.C, rows = s.H + 2 * p;
    const float* mean = of.mean;
    for (size_t i = 0; i < size_t(s.N) * C; i++) scale[i] = out.scale ? of.rstd[i] * out.scale[i % C] : of.rstd[i];
    size_t line = size_t(s.W + 2 * p) * C;
    parallel_for(int64_t(s.N) * s.H, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            size_t n = i / s.H, h = i % s.H;
            T* row = y + (n * rows + h + p) * line + size_t(p) * C;
            const T *from = x.at(n, h), *added = residual.first ? residual.at(n, h) : nullptr;
            for (int w = 0; w < s.W; w++) {
                size_t offset = size_t(w) * C;
                for (int c = 0; c < C; c += LANES) {
                    int lanes = C - c;
                    Floats z = load(from + offset + c, lanes) - load(mean + n * C + c, lanes);
                    z *= load(scale + n * C + c, lanes);
                    if (out.shift) z += load(out.shift + c, lanes);
                    z = activated(z, out.activation, out.slope);
                    if (residual.first) z += load(added + offset + c, lanes);
                    store(row + offset + c, z, lanes);
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

// Images without gaps.
template <class T>
Rows<T> images(const T* first, const Size& s) {
    return {first, size_t(s.W) * s.C, size_t(s.pixels()) * s.C};
}

// A region of one image.
template <class T>
Rows<T> region(const T* first, int64_t row) {
    return {first, size_t(row), 0};
}

// again: mean and rstd are given.
template <class T>
int norm(const T* x, const T* residual, T* y, Size s, Output out, float eps, bool again, float* mean, float* rstd,
         int threads) {
    size_t channels = size_t(s.N) * s.C, parts = again ? 0 : moments_size(s);
    float* memory = scratch_for_call().floats(parts + channels);
    if (!memory) return 1;
    if (!again) {
        moments(images(x, s), s, mean, rstd, memory, threads);
        // Until here, these are variances.
        for (size_t i = 0; i < channels; i++) rstd[i] = 1 / std::sqrt(rstd[i] + eps);
    }
    apply(images(x, s), images(residual, s), y, s, out, {mean, rstd}, memory + parts, threads);
    return 0;
}

template <class T>
int region_moments(const Rows<T>& x, Size s, float* mean, float* variance, int threads) {
    float* parts = scratch_for_call().floats(moments_size(s));
    if (!parts) return 1;
    moments(x, s, mean, variance, parts, threads);
    return 0;
}

template <class T>
int norm_region(const Rows<T>& x, const Rows<T>& residual, T* y, Size s, Output out, const Statistics& of,
                int threads) {
    float* scales = scratch_for_call().floats(s.C);
    if (!scales) return 1;
    apply(x, residual, y, s, out, of, scales, threads);
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

int fcg_region_moments(int half, const void* x, int64_t row, float* mean, float* variance, int H, int W, int C,
                       int threads) {
    Size s{1, H, W, C};
    if (half) return region_moments(region((const bf16*)x, row), s, mean, variance, threads);
    return region_moments(region((const float*)x, row), s, mean, variance, threads);
}

int fcg_norm_region(int half, const void* x, int64_t row, const void* residual, int64_t residual_row, void* y,
                    const float* scale, const float* shift, const float* mean, const float* rstd, int H, int W, int C,
                    int activation, float slope, int threads) {
    Size s{1, H, W, C};
    Output out{scale, shift, activation, slope, 0};
    Statistics of{mean, rstd};
    if (half)
        return norm_region(region((const bf16*)x, row), region((const bf16*)residual, residual_row), (bf16*)y, s, out,
                           of, threads);
    return norm_region(region((const float*)x, row), region((const float*)residual, residual_row), (float*)y, s, out,
                       of, threads);
}
