// The gradient of instance norm with its activation, and of a reflected border.
#include <new>
#include <vector>

#include "norm.h"
#include "parallel.h"

namespace {

// The output's gradient: where its first pixel inside the border is, and how its pixels, rows and images follow.
template <class T>
struct Gradient {
    const T* first;
    size_t row, image;
};

// Pixels whose sums are taken together; a row consists of parts.
constexpr int PART = 64;

inline int parts_of(int W) { return (W + PART - 1) / PART; }

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
            for (int64_t i = start; i < count && i < start + PART; i++) group += load(lines + (2 * i + which) * C, lanes);
            total += group;
        }
        store(to + which * to_step, total, lanes);
    }
}

template <class T>
void sums(Gradient<T> g, const T* x, Size s, const Statistics& statistics, const Output& out, float* total, int threads) {
    int C = s.C, parts = parts_of(s.W);
    std::vector<float> lines(size_t(s.N) * s.H * parts * 2 * C);
    parallel_for(int64_t(s.N) * s.H, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            size_t n = row / s.H, h = row % s.H;
            const T* from = g.first + n * g.image + h * g.row;
            for (int c = 0; c < C; c += LANES) {
                Channels of(statistics, out, n, c, C);
                for (int part = 0; part < parts; part++) {
                    int w = part * PART, count = s.W - w < PART ? s.W - w : PART;
                    sum_pixels(from + size_t(w) * C + c, x + (size_t(row) * s.W + w) * C + c, count, C, C - c, of, out,
                               &lines[(size_t(row) * parts + part) * 2 * C + c]);
                }
            }
        }
    });
    int groups = (C + LANES - 1) / LANES;
    int64_t per_image = int64_t(s.H) * parts;
    parallel_for(int64_t(s.N) * groups, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            size_t n = i / groups, c = size_t(i % groups) * LANES;
            add_lines(&lines[n * per_image * 2 * C + c], per_image, C, C - int(c), total + n * C + c, size_t(s.N) * C);
        }
    });
}

// The coefficients of a gradient: dx = a * dz - b - c * xhat.
struct Coefficients {
    Floats a, b, c;
    Coefficients(const Channels& of, Floats sum, Floats product, float pixels) {
        a = of.rstd * of.scale;
        b = a * sum * (1 / pixels);
        c = a * product * (1 / pixels);
    }
};

template <class T>
void differentiate(Gradient<T> g, const T* x, T* dx, Size s, const Statistics& statistics, const Output& out,
                   const float* total, int threads) {
    int C = s.C;
    parallel_for(int64_t(s.N) * s.H, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            size_t n = row / s.H, h = row % s.H, at = size_t(row) * s.W * C;
            const T* from = g.first + n * g.image + h * g.row;
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

// to [C] = the sums of g [P, C], in parts that do not depend on the threads.
template <class T>
void sum_all(const T* g, float* to, int64_t P, int C, int threads) {
    constexpr int64_t MANY = 16 * PART;
    int64_t count = (P + MANY - 1) / MANY;
    std::vector<float> lines(size_t(count) * C);
    parallel_for(count, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
            for (int c = 0; c < C; c += LANES) {
                Floats total{};
                for (int64_t start = i * MANY; start < P && start < (i + 1) * MANY; start += PART) {
                    Floats part{};
                    for (int64_t p = start; p < P && p < start + PART; p++) part += load(g + p * C + c, C - c);
                    total += part;
                }
                store(&lines[size_t(i) * C + c], total, C - c);
            }
    });
    for (int c = 0; c < C; c++) {
        float total = 0;
        for (int64_t i = 0; i < count; i++) total += lines[size_t(i) * C + c];
        to[c] = total;
    }
}

// One line of P pixels: a channel of an image whose channels come before its pixels.
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

// The up to three lines of a bordered image that show line i of `size` lines.
struct Shown {
    int lines[3], count = 0;
    Shown(int i, int size, int p) {
        lines[count++] = i + p;
        if (i >= 1 && i <= p) lines[count++] = p - i;
        if (i <= size - 2 && i >= size - 1 - p) lines[count++] = p + 2 * (size - 1) - i;
    }
};

// to [C] = the sum of the gradients of the pixels that show pixel (rows, columns), + added.
template <class T>
void fold_pixel(const T* g, size_t width, int C, const Shown& rows, const Shown& columns, const T* added, T* to) {
    for (int c = 0; c < C; c += LANES) {
        Floats value = added ? load(added + c, C - c) : Floats{};
        for (int i = 0; i < rows.count; i++)
            for (int j = 0; j < columns.count; j++)
                value += load(g + (rows.lines[i] * width + columns.lines[j]) * C + c, C - c);
        store(to + c, value, C - c);
    }
}

// Folds the border. Where to == g, only the pixels that the border shows are changed.
template <class T>
void fold(const T* g, const T* added, T* to, Size s, int p, bool in_place, int threads) {
    size_t width = s.W + 2 * p, image = width * (s.H + 2 * p) * s.C;
    parallel_for(int64_t(s.N) * s.H, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const T* from = g + size_t(i / s.H) * image;
            int h = int(i % s.H);
            Shown rows(h, s.H, p);
            for (int w = 0; w < s.W; w++) {
                Shown columns(w, s.W, p);
                size_t pixel = in_place ? size_t(i / s.H) * image + (size_t(h + p) * width + w + p) * s.C
                                        : (size_t(i) * s.W + w) * s.C;
                if (in_place && rows.count == 1 && columns.count == 1) continue;
                fold_pixel(from, width, s.C, rows, columns, added ? added + pixel : nullptr, to + pixel);
            }
        }
    });
}

template <class T>
void backward(const T* g, const T* x, T* dx, Size s, const Statistics& statistics, const Output& out, float* total,
              int threads) {
    int p = out.border;
    size_t row = size_t(s.W + 2 * p) * s.C;
    Gradient<T> inside{g + p * row + size_t(p) * s.C, row, row * (s.H + 2 * p)};
    sums(inside, x, s, statistics, out, total, threads);
    differentiate(inside, x, dx, s, statistics, out, total, threads);
}

}  // namespace

extern "C" {

// dx [N, H, W, C] = the gradient of x, and total [2, N, C] = the sums of dz and of dz * xhat over an image, where
// z = xhat * scale + shift. g [N, H + 2 border, W + 2 border, C]: the gradient of the output, whose border has been
// folded. half: g, x and dx are bf16. Returns 1 if there is no memory.
int fcg_norm_backward(int half, const void* g, const void* x, const float* mean, const float* rstd, const float* scale,
                      const float* shift, void* dx, float* total, int N, int H, int W, int C, int border,
                      int activation, float slope, int threads) try {
    Size s{N, H, W, C};
    Output out{scale, shift, activation, slope, border};
    Statistics statistics{mean, rstd};
    if (half)
        backward((const bf16*)g, (const bf16*)x, (bf16*)dx, s, statistics, out, total, threads);
    else
        backward((const float*)g, (const float*)x, (float*)dx, s, statistics, out, total, threads);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// The same without a border for g, x and dx [N, C, P], with the channels before the pixels.
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

// to [C] = the sums over the P pixels of g [P, C], in bf16 if `half`. Returns 1 if there is no memory.
int fcg_sum_pixels(int half, const void* g, float* to, int64_t P, int C, int threads) try {
    if (half)
        sum_all((const bf16*)g, to, P, C, threads);
    else
        sum_all((const float*)g, to, P, C, threads);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// Folds the reflected border of g [N, H + 2p, W + 2p, C] onto the pixels that it shows: to [N, H, W, C] = the gradient
// of the image, + added if that is not null. If `to` is null, the pixels of g are changed, and its border is kept.
int fcg_fold(int half, const void* g, const void* added, void* to, int N, int H, int W, int C, int p, int threads) {
    Size s{N, H, W, C};
    bool in_place = to == nullptr;
    if (half)
        fold((const bf16*)g, (const bf16*)added, in_place ? (bf16*)g : (bf16*)to, s, p, in_place, threads);
    else
        fold((const float*)g, (const float*)added, in_place ? (float*)g : (float*)to, s, p, in_place, threads);
    return 0;
}
}
