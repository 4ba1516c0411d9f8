// Convolutions of images with few channels, by their definition.
#include "direct.h"
#include "kernels.h"
#include "product.h"
#include "threads.h"

namespace {

using direct::Shape;

// A row of k * C numbers of the padded image meets one row of the kernel, so that the product reads the image
// itself: pixels are rows of A, and the numbers of a window's line are the sum's index.
template <class To>
void wide(const float* x, const float* u, const float* bias, To* y, const Shape& s, int threads) {
    int run = s.k * s.C, panels = (s.O + PANEL - 1) / PANEL, step = rows_per_block(s.columns());
    parallel_for(int64_t(s.N) * s.rows(), threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            float out[ROWS * PANEL];
            const float* line = x + s.line(row);
            To* to = y + size_t(row) * s.columns() * s.O;
            for (int j = 0; j < panels; j++)
                for (int w = 0; w < s.columns(); w += step) {
                    int count = s.columns() - w < step ? s.columns() - w : step;
                    multiply({line + size_t(w) * s.stride * s.C, size_t(s.stride) * s.C, size_t(s.W) * s.C,
                              u + size_t(j) * s.k * run * PANEL, run, s.k, out},
                             count);
                    for (int r = 0; r < count; r++)
                        for (int i = 0; i < PANEL && j * PANEL + i < s.O; i += LANES) {
                            int o = j * PANEL + i;
                            Floats value = load(out + r * PANEL + i);
                            if (bias) value += load(bias + o, s.O - o);
                            store(to + size_t(w + r) * s.O + o, value, s.O - o);
                        }
                }
        }
    });
}

}  // namespace

int64_t fcg_wide_size(int O, int C, int k) { return int64_t(k) * k * C * round_up(O, PANEL); }

int fcg_wide_weight(const float* w, float* u, int O, int C, int k, int) {
    int numbers = k * k * C;
    for (int o = 0; o < round_up(O, PANEL); o++)
        for (int i = 0; i < numbers; i++)
            u[(size_t(o / PANEL) * numbers + i) * PANEL + o % PANEL] = o < O ? w[size_t(o) * numbers + i] : 0;
    return 0;
}

int fcg_wide(int half, const float* x, const float* u, const float* bias, void* y, int N, int H, int W, int C, int O,
              int k, int stride, int threads) {
    Shape s{N, H, W, C, O, k, stride};
    if (half)
        wide(x, u, bias, (bf16*)y, s, threads);
    else
        wide(x, u, bias, (float*)y, s, threads);
    return 0;
}
