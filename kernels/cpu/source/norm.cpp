// Instance norm with scale, shift, activation, residual and a reflected border, and reflection padding.
#include <atomic>
#include <cmath>
#include <new>
#include <vector>

#include "norm.h"
#include "parallel.h"

namespace {

inline Floats activated(Floats z, int activation, float slope) {
    // Written so that NaN stays NaN.
    if (activation == RELU) return z < Floats{} ? Floats{} : z;
    if (activation == LEAKY_RELU) return z > Floats{} ? z : z * slope;
    return z;
}

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
    Floats total{}, squares{};
    float count = 0;
    for (int64_t k = 0; k < chunks_of(pixels); k++) {
        const float* part = parts + size_t(k) * 2 * C;
        float size = chunk_size(k, pixels), sum = count + size;
        Floats d = load(part, lanes) - total;
        total += d * (size / sum);
        squares += load(part + C, lanes) + d * d * (count * size / sum);
        count = sum;
    }
    Floats r = squares * (1.0f / pixels) + eps;
    for (int i = 0; i < LANES; i++) r[i] = 1.0f / std::sqrt(r[i]);
    store(mean, total, lanes);
    store(rstd, r, lanes);
}

template <class T>
void moments(const T* x, Size s, float eps, float* mean, float* rstd, int threads) {
    int C = s.C;
    int64_t P = s.pixels(), chunks = chunks_of(P);
    std::vector<float> parts(size_t(s.N) * chunks * 2 * C);
    parallel_for(int64_t(s.N) * chunks, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            float* part = &parts[size_t(i) * 2 * C];
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
            join(&parts[n * chunks * 2 * C + c], P, C, C - int(c), eps, mean + n * C + c, rstd + n * C + c);
        }
    });
}

// Copies the pixels that the border of a finished row reflects. `row` is the first pixel inside the border.
template <class T>
void reflect_row(T* row, int W, int C, int border) {
    for (int k = 1; k <= border; k++) {
        memcpy(row - size_t(k) * C, row + size_t(k) * C, C * sizeof(T));
        memcpy(row + size_t(W - 1 + k) * C, row + size_t(W - 1 - k) * C, C * sizeof(T));
    }
}

template <class T>
void apply(const T* x, const T* residual, T* y, Size s, Output out, const float* mean, const float* scale, int threads) {
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
void norm(const T* x, const T* residual, T* y, Size s, Output out, float eps, bool again, float* mean, float* rstd,
          int threads) {
    if (!again) moments(x, s, eps, mean, rstd, threads);
    std::vector<float> scales;
    if (out.scale) {
        scales.assign(rstd, rstd + size_t(s.N) * s.C);
        for (size_t i = 0; i < scales.size(); i++) scales[i] *= out.scale[i % s.C];
    }
    apply(x, residual, y, s, out, mean, out.scale ? scales.data() : rstd, threads);
}

// Writes instance norm of one line of P pixels: a channel of an image whose channels come before its pixels. The
// moments are those of `chunk_moments` and `join`.
template <class T>
void norm_line(const T* x, const T* residual, T* y, int64_t P, float weight, float shift, const Output& out, float eps,
               float* mean_of_line, float* rstd) {
    constexpr int LONG = 1024;
    float mean = 0, squares = 0, count = 0;
    for (int64_t start = 0; start < P; start += LONG) {
        int size = P - start < LONG ? int(P - start) : LONG;
        Floats values{}, differences{}, their_squares{};
        for (int i = 0; i < size; i += LANES) values += load(x + start + i, size - i);
        float about = sum(values) / size;
        for (int i = 0; i < size; i += LANES) {
            Floats d = load(x + start + i, size - i) - about;
            // The lanes beyond the end must not count.
            for (int rest = size - i; rest < LANES; rest++) d[rest] = 0;
            differences += d;
            their_squares += d * d;
        }
        float rest = sum(differences), correction = rest / size;
        float d = about + correction - mean, both = count + size;
        mean += d * (size / both);
        squares += sum(their_squares) - rest * correction + d * d * (count * size / both);
        count = both;
    }
    *mean_of_line = mean;
    *rstd = 1.0f / std::sqrt(squares / P + eps);
    float scale = *rstd * weight;
    for (int64_t i = 0; i < P; i += LANES) {
        int lanes = P - i < LANES ? int(P - i) : LANES;
        Floats z = activated((load(x + i, lanes) - mean) * scale + shift, out.activation, out.slope);
        if (residual) z += load(residual + i, lanes);
        store(y + i, z, lanes);
    }
}

template <class T>
void norm_lines(const T* x, const T* residual, T* y, int N, int C, int64_t P, Output out, float eps, float* mean,
                float* rstd, int threads) {
    parallel_for(int64_t(N) * C, threads, [&](int64_t begin, int64_t end) {
        for (int64_t line = begin; line < end; line++) {
            int64_t c = line % C, at = line * P;
            norm_line(x + at, residual ? residual + at : nullptr, y + at, P, out.scale ? out.scale[c] : 1,
                      out.shift ? out.shift[c] : 0, out, eps, mean + line, rstd + line);
        }
    });
}

// Copies `count` numbers.
template <class T>
void copy(const T* from, T* to, size_t count) {
    memcpy(to, from, count * sizeof(T));
}

void copy(const bf16* from, float* to, size_t count) {
    for (size_t i = 0; i < count; i += LANES) {
        int lanes = count - i < LANES ? int(count - i) : LANES;
        store(to + i, load(from + i, lanes), lanes);
    }
}

template <class T, class To>
void pad(const T* x, To* y, Size s, int p, bool reflect, int threads) {
    int rows = s.H + 2 * p, C = s.C;
    size_t inner = size_t(s.W) * C, line = size_t(s.W + 2 * p) * C;
    parallel_for(int64_t(s.N) * rows, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            To *to = y + size_t(i) * line, *first = to + size_t(p) * C;
            int h = int(i % rows) - p;
            if (reflect) h = reflected(h, s.H);
            memset(to, 0, line * sizeof(To));
            if (h < 0 || h >= s.H) continue;
            copy(x + (size_t(i / rows) * s.H + h) * inner, first, inner);
            if (reflect) reflect_row(first, s.W, C, p);
        }
    });
}

}  // namespace

extern "C" {

// y [N, H + 2 border, W + 2 border, C] = act(IN(x) * scale + shift) + residual, with a reflected border; mean and rstd
// [N, C] are those of x, and are not computed if `again`. half: x, residual and y are bf16 rather than fp32. Returns 1
// if there is no memory.
int fcg_norm(int half, const void* x, const void* residual, void* y, const float* scale, const float* shift,
             float* mean, float* rstd, int again, int N, int H, int W, int C, int border, int activation, float slope,
             float eps, int threads) try {
    Size s{N, H, W, C};
    Output out{scale, shift, activation, slope, border};
    if (half)
        norm((const bf16*)x, (const bf16*)residual, (bf16*)y, s, out, eps, again, mean, rstd, threads);
    else
        norm((const float*)x, (const float*)residual, (float*)y, s, out, eps, again, mean, rstd, threads);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// The same without a border for x, residual and y [N, C, P], with the channels before the pixels.
int fcg_norm_lines(int half, const void* x, const void* residual, void* y, const float* scale, const float* shift,
                   float* mean, float* rstd, int N, int C, int64_t P, int activation, float slope, float eps,
                   int threads) {
    Output out{scale, shift, activation, slope, 0};
    if (half)
        norm_lines((const bf16*)x, (const bf16*)residual, (bf16*)y, N, C, P, out, eps, mean, rstd, threads);
    else
        norm_lines((const float*)x, (const float*)residual, (float*)y, N, C, P, out, eps, mean, rstd, threads);
    return 0;
}

// y [N, H + 2p, W + 2p, C] = x with a border of p pixels, reflected or zero. wide: y is fp32, whatever x is.
int fcg_pad(int half, int wide, const void* x, void* y, int N, int H, int W, int C, int p, int reflect, int threads) {
    Size s{N, H, W, C};
    if (!half)
        pad((const float*)x, (float*)y, s, p, reflect, threads);
    else if (wide)
        pad((const bf16*)x, (float*)y, s, p, reflect, threads);
    else
        pad((const bf16*)x, (bf16*)y, s, p, reflect, threads);
    return 0;
}

// Whether two blocks of memory are equal.
int fcg_equal(const char* a, const char* b, int64_t bytes, int threads) {
    constexpr int64_t PART = 1 << 18;
    std::atomic<bool> equal{true};
    parallel_for((bytes + PART - 1) / PART, threads, [&](int64_t begin, int64_t end) {
        int64_t last = end * PART < bytes ? end * PART : bytes;
        if (memcmp(a + begin * PART, b + begin * PART, last - begin * PART)) equal = false;
    });
    return equal;
}
}
