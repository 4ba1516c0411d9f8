// The gradients of the weights of convolutions from and to images with few channels.
#include <atomic>

#include "kernels.h"
#include "product.h"
#include "scratch.h"
#include "threads.h"

namespace {

// `few` is an image [N, FH, FW, F] with few channels, `many` one [N, H, W, M] with many. Pixel (h, w) of `many` meets
// the k * k pixels of `few` from (h * stride, w * stride) on.
struct Shape {
    int N, H, W, M, FH, FW, F, k, stride;
    int line() const { return k * F; }
    // Rows of `many` whose products are summed together: their number depends on the shape alone, so that the
    // sums do not depend on the threads.
    int64_t rows_per_part() const {
        int64_t rows = (int64_t(N) * H + 63) / 64;
        return rows < 8 ? 8 : rows;
    }
    int64_t parts() const { return (int64_t(N) * H + rows_per_part() - 1) / rows_per_part(); }
    size_t sums() const { return size_t(k) * line() * round_up(M, PANEL); }
};

// Adds the products of one row of `many`, as fp32 numbers of `width` channels, to sums [k, k * F, width].
void add_row(const float* few, const float* many, const Shape& s, int width, float* sums, bool add) {
    int rows = rows_per_block(s.line());
    for (int i = 0; i < s.k; i++)
        for (int j = 0; j < width; j += PANEL)
            for (int r = 0; r < s.line(); r += rows)
                multiply_columns({few + size_t(i) * s.FW * s.F + r, size_t(s.stride) * s.F, many + j, size_t(width),
                                  s.W, sums + (size_t(i) * s.line() + r) * width + j, size_t(width), add},
                                 s.line() - r < rows ? s.line() - r : rows);
}

// Sums the products of each part of the rows of all images.
template <class T>
bool sum_parts(const float* few, const T* many, const Shape& s, float* parts, int threads) {
    int width = round_up(s.M, PANEL);
    std::atomic<bool> failed{false};
    parallel_for(s.parts(), threads, [&](int64_t begin, int64_t end) {
        float* row = scratch().floats(size_t(s.W) * width);
        if (!row) failed = true;
        for (int64_t part = begin; row && part < end; part++) {
            int64_t first = part * s.rows_per_part(), last = first + s.rows_per_part();
            for (int64_t i = first; i < last && i < int64_t(s.N) * s.H; i++) {
                const T* from = many + size_t(i) * s.W * s.M;
                for (int w = 0; w < s.W; w++)
                    for (int c = 0; c < width; c += LANES)
                        store(row + size_t(w) * width + c,
                              c < s.M ? load(from + size_t(w) * s.M + c, s.M - c) : Floats{});
                const float* lines = few + (size_t(i / s.H) * s.FH + size_t(i % s.H) * s.stride) * s.FW * s.F;
                add_row(lines, row, s, width, parts + size_t(part) * s.sums(), i > first);
            }
        }
    });
    return !failed;
}

// Writes or adds the sum of the parts to the weights. Number (i, j, f, m) of the kernel goes to w[place(i, j, f, m)].
template <class Place>
void join_parts(const float* parts, const Shape& s, float* w, bool add, int threads, const Place& place) {
    int width = round_up(s.M, PANEL);
    parallel_for(int64_t(s.k) * s.line(), threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            int i = int(row / s.line()), j = int(row % s.line()) / s.F, f = int(row % s.line()) % s.F;
            for (int m = 0; m < s.M; m++) {
                float value = 0;
                for (int64_t part = 0; part < s.parts(); part++) value += parts[part * s.sums() + row * width + m];
                float* to = w + place(i, j, f, m);
                *to = add ? *to + value : value;
            }
        }
    });
}

template <class Place>
int gradient(int half, const float* few, const void* many, const Shape& s, float* w, bool add, int threads,
             const Place& place) {
    float* parts = scratch_for_call().floats(size_t(s.parts()) * s.sums());
    if (!parts) return 1;
    bool summed = half ? sum_parts(few, (const bf16*)many, s, parts, threads)
                       : sum_parts(few, (const float*)many, s, parts, threads);
    if (!summed) return 1;
    join_parts(parts, s, w, add, threads, place);
    return 0;
}

}  // namespace

int fcg_wide_gradient(int half, const float* x, const void* g, float* w, int N, int H, int W, int O, int XH, int XW,
                      int C, int k, int stride, int add, int threads) {
    Shape s{N, H, W, O, XH, XW, C, k, stride};
    return gradient(half, x, g, s, w, add, threads, [&](int i, int j, int c, int o) {
        return ((size_t(o) * k + i) * k + j) * C + c;
    });
}

int fcg_few_gradient(int half, const float* g, const void* x, float* w, int N, int H, int W, int C, int GH, int GW,
                     int O, int k, int, int add, int threads) {
    Shape s{N, H, W, C, GH, GW, O, k, 1};
    return gradient(half, g, x, s, w, add, threads, [&](int i, int j, int o, int c) {
        return ((size_t(o) * k + k - 1 - i) * k + k - 1 - j) * C + c;
    });
}
