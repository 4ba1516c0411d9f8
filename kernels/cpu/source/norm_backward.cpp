// The gradient of instance norm in channels_last, with its scale, shift and activation.
#include "kernels.h"
#include "norm.h"
#include "scratch.h"
#include "threads.h"

namespace {

// Pixels whose sums are taken together; a row consists of parts.
constexpr int PART = 64;

inline int parts_of(int W) { return (W + PART - 1) / PART; }

// Writes, for `count` pixels, the sums of dz and of dz * xhat.
template <class T>
void sum_pixels(const T* g, const T* x, int count, int C, int lanes, const Channels& of, const Output& out, float* to) {
    Floats sum{}, product{};
    for (int i = 0; i < count; i++) {
        Floats xhat = (load(x + size_t(i) * C, lanes) - of.mean) * of.rstd;
        Floats d = load(g + size_t(i) * C, lanes);
        d = before_activation(d, xhat * of.scale + of.shift, out.activation, out.slope);
        sum += d;
        product += d * xhat;
    }
    store(to, sum, lanes);
    store(to + C, product, lanes);
}

// Adds up `count` lines of 2 * C numbers in groups of PART, because long sums in fp32 lose accuracy.
void add_lines(const float* lines, int64_t count, int C, int lanes, float* to, size_t to_step) {
    for (int which = 0; which < 2; which++) {
        Floats total{};
        for (int64_t start = 0; start < count; start += PART) {
            Floats group{};
            for (int64_t i = start; i < count && i < start + PART; i++)
                group += load(lines + (2 * i + which) * C, lanes);
            total += group;
        }
        store(to + which * to_step, total, lanes);
    }
}

template <class T>
void sums(Rows<T> g, const T* x, Size s, const Statistics& statistics, const Output& out, float* lines,
          float* total, int threads) {
    int C = s.C, parts = parts_of(s.W);
    parallel_for(int64_t(s.N) * s.H, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            size_t n = row / s.H, h = row % s.H;
            const T* from = g.at(n, h);
            for (int c = 0; c < C; c += LANES) {
                Channels of(statistics, out, n, c, C);
                for (int part = 0; part < parts; part++) {
                    int w = part * PART, count = s.W - w < PART ? s.W - w : PART;
                    sum_pixels(from + size_t(w) * C + c, x + (size_t(row) * s.W + w) * C + c, count, C, C - c, of, out,
                               lines + (size_t(row) * parts + part) * 2 * C + c);
                }
            }
        }
    });
    int groups = (C + LANES - 1) / LANES;
    int64_t per_image = int64_t(s.H) * parts;
    parallel_for(int64_t(s.N) * groups, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            size_t n = i / groups, c = size_t(i % groups) * LANES;
            add_lines(lines + n * per_image * 2 * C + c, per_image, C, C - int(c), total + n * C + c, size_t(s.N) * C);
        }
    });
}

template <class T>
void differentiate(Rows<T> g, const T* x, T* dx, Size s, const Statistics& statistics, const Output& out,
                   const float* total, int threads) {
    int C = s.C;
    parallel_for(int64_t(s.N) * s.H, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            size_t n = row / s.H, h = row % s.H, at = size_t(row) * s.W * C;
            const T* from = g.at(n, h);
            for (int c = 0; c < C; c += LANES) {
                int lanes = C - c;
                Channels of(statistics, out, n, c, C);
                const float* sum = total + n * C + c;
                Coefficients k(of, load(sum, lanes), load(sum + size_t(s.N) * C, lanes), float(s.pixels()));
                for (int w = 0; w < s.W; w++) {
                    size_t pixel = size_t(w) * C + c;
                    Floats xhat = (load(x + at + pixel, lanes) - of.mean) * of.rstd, d = load(from + pixel, lanes);
                    d = before_activation(d, xhat * of.scale + of.shift, out.activation, out.slope);
                    store(dx + at + pixel, k.a * d - k.b - k.c * xhat, lanes);
                }
            }
        }
    });
}

template <class T>
int backward(const T* g, const T* x, T* dx, Size s, const Statistics& statistics, const Output& out, float* total,
             int threads) {
    int p = out.border;
    size_t row = size_t(s.W + 2 * p) * s.C;
    // From the first pixel inside the border on.
    Rows<T> inside{g + p * row + size_t(p) * s.C, row, row * (s.H + 2 * p)};
    float* lines = scratch_for_call().floats(size_t(s.N) * s.H * parts_of(s.W) * 2 * s.C);
    if (!lines) return 1;
    sums(inside, x, s, statistics, out, lines, total, threads);
    differentiate(inside, x, dx, s, statistics, out, total, threads);
    return 0;
}

}  // namespace

int fcg_norm_backward(int half, const void* g, const void* x, const float* mean, const float* rstd, const float* scale,
                      const float* shift, void* dx, float* total, int N, int H, int W, int C, int border,
                      int activation, float slope, int threads) {
    Size s{N, H, W, C};
    Output out{scale, shift, activation, slope, border};
    Statistics statistics{mean, rstd};
    if (half) return backward((const bf16*)g, (const bf16*)x, (bf16*)dx, s, statistics, out, total, threads);
    return backward((const float*)g, (const float*)x, (float*)dx, s, statistics, out, total, threads);
}
