// Borders of images, reflected or zero, and the gradient of a reflected one.
#include "border.h"

#include "kernels.h"
#include "threads.h"
#include "vectors.h"

namespace {

struct Size {
    int N, H, W, C;
};

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

}  // namespace

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

int fcg_fold(int half, const void* g, const void* added, void* to, int N, int H, int W, int C, int p, int threads) {
    Size s{N, H, W, C};
    bool in_place = to == nullptr;
    if (half)
        fold((const bf16*)g, (const bf16*)added, in_place ? (bf16*)g : (bf16*)to, s, p, in_place, threads);
    else
        fold((const float*)g, (const float*)added, in_place ? (float*)g : (float*)to, s, p, in_place, threads);
    return 0;
}
