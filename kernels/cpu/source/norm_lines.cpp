// Instance norm of planes, images whose channels come before their pixels, and its gradient. A line is a channel of an
// image: P pixels that follow one another.
#include <cmath>

#include "kernels.h"
#include "norm.h"
#include "threads.h"

namespace {

// Writes instance norm of one line. Its mean and squares are taken in parts and joined as in norm.cpp.
template <class T>
void norm_line(const T* x, const T* residual, T* y, int64_t P, float weight, float shift, const Output& out, float eps,
               float* mean_of_line, float* rstd) {
    constexpr int LONG = 1024;
    float mean = 0, variance = 0, count = 0, share = 1.0f / P;
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
        float own = sum(their_squares) - rest * correction;
        variance += count > 0 ? own * share + d * d * (count * size / both * share) : own * share;
        count = both;
    }
    // As in norm.cpp.
    if (variance < 0) variance = 0;
    *mean_of_line = mean;
    *rstd = 1.0f / std::sqrt(variance + eps);
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

// Pixels of each lane whose sums are taken together.
constexpr int PART = 64;

// Writes the gradient of one line of P pixels, and its sums of dz and of dz * xhat.
template <class T>
void line(const T* g, const T* x, T* dx, int64_t P, const Channels& of, const Output& out, float* sum, float* product) {
    Floats total{}, products{};
    for (int64_t start = 0; start < P; start += PART * LANES) {
        Floats part{}, part_products{};
        for (int64_t i = start; i < P && i < start + PART * LANES; i += LANES) {
            int lanes = P - i < LANES ? int(P - i) : LANES;
            Floats xhat = (load(x + i, lanes) - of.mean) * of.rstd;
            // Lanes beyond the end have no gradient.
            Floats d = before_activation(load(g + i, lanes), xhat * of.scale + of.shift, out.activation, out.slope);
            for (int rest = lanes; rest < LANES; rest++) d[rest] = xhat[rest] = 0;
            part += d;
            part_products += d * xhat;
        }
        total += part;
        products += part_products;
    }
    *sum = ::sum(total);
    *product = ::sum(products);
    Coefficients k(of, splat(*sum), splat(*product), float(P));
    for (int64_t i = 0; i < P; i += LANES) {
        int lanes = P - i < LANES ? int(P - i) : LANES;
        Floats xhat = (load(x + i, lanes) - of.mean) * of.rstd;
        Floats d = before_activation(load(g + i, lanes), xhat * of.scale + of.shift, out.activation, out.slope);
        store(dx + i, k.a * d - k.b - k.c * xhat, lanes);
    }
}

template <class T>
void lines(const T* g, const T* x, T* dx, int N, int C, int64_t P, const Statistics& statistics, const Output& out,
           float* total, int threads) {
    int64_t count = int64_t(N) * C;
    parallel_for(count, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            Channels of(statistics, out, 0, 0, 1);
            of.mean = splat(statistics.mean[i]);
            of.rstd = splat(statistics.rstd[i]);
            of.scale = splat(out.scale ? out.scale[i % C] : 1);
            of.shift = splat(out.shift ? out.shift[i % C] : 0);
            line(g + i * P, x + i * P, dx + i * P, P, of, out, total + i, total + count + i);
        }
    });
}

}  // namespace

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

int fcg_norm_backward_lines(int half, const void* g, const void* x, const float* mean, const float* rstd,
                            const float* scale, const float* shift, void* dx, float* total, int N, int C, int64_t P,
                            int activation, float slope, int threads) {
    Output out{scale, shift, activation, slope, 0};
    Statistics statistics{mean, rstd};
    if (half)
        lines((const bf16*)g, (const bf16*)x, (bf16*)dx, N, C, P, statistics, out, total, threads);
    else
        lines((const float*)g, (const float*)x, (float*)dx, N, C, P, statistics, out, total, threads);
    return 0;
}
