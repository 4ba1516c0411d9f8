// 3x3 convolutions with stride 1 by Winograd's F(4x4, 3x3), and their gradients for the image: see winograd.h.
#include "winograd.h"

#include <atomic>

#include "parallel.h"
#include "product.h"

namespace {

using namespace winograd;

// Writes the outputs of one tile for the channels [o, o + LANES), from the products m[k * plane].
template <class T>
void tile_output(const float* m, size_t plane, const float* bias, T* y, const Shape& s, Place place, int o) {
    Floats d[POINTS], e[TILE * WINDOW], result[TILE * TILE];
    for (int k = 0; k < POINTS; k++) d[k] = load(m + k * plane);
    for (int j = 0; j < WINDOW; j++) transform_output(d + j, WINDOW, e + j, WINDOW);
    for (int i = 0; i < TILE; i++) transform_output(e + i * WINDOW, 1, result + i * TILE, 1);
    Floats offset = bias ? load(bias + o, s.O - o) : Floats{};
    int rows = s.rows() - place.h, columns = s.columns() - place.w;
    for (int i = 0; i < TILE && i < rows; i++)
        for (int j = 0; j < TILE && j < columns; j++) {
            size_t pixel = (size_t(place.n) * s.rows() + place.h + i) * s.columns() + place.w + j;
            store(y + pixel * s.O + o, result[i * TILE + j] + offset, s.O - o);
        }
}

// Tiles whose products are computed together: their transforms stay in the second cache.
constexpr int BLOCK = 2 * ROWS;

// Numbers between the points of a panel of C inputs. They do not compete for the same places of a cache.
inline size_t panel_plane(int C) { return size_t(C) * PANEL + SKEW; }

// Multiplies the transforms of `count` tiles with one panel of the transformed weights, point by point.
void multiply_panel(const float* in, size_t plane_in, int channels, const float* panel, int C, float* out,
                    size_t plane_out, int count) {
    int rows = rows_per_block(count);
    for (int k = 0; k < POINTS; k++)
        for (int t = 0; t < count; t += rows) {
            Product part{in + k * plane_in + size_t(t) * channels, size_t(channels), 0, panel + k * panel_plane(C), C,
                         1, out + k * plane_out + size_t(t) * PANEL};
            multiply(part, count - t < rows ? count - t : rows);
        }
}

template <class T, class To>
int convolve(const T* x, const float* u, const float* bias, To* y, const Shape& s, int threads) {
    int64_t tiles = s.tiles(), blocks = (tiles + BLOCK - 1) / BLOCK;
    // Equal shares: as many blocks as a multiple of the threads, if that makes them smaller.
    blocks = (blocks + threads - 1) / threads * threads;
    int per_block = int((tiles + blocks - 1) / blocks);
    // Rows of transforms whose lines do not compete for the same places of the first cache either.
    int channels = round_up(s.C, LANES), panels = (s.O + PANEL - 1) / PANEL;
    if (channels % 64 == 0) channels += LANES;
    size_t plane_in = size_t(per_block) * channels + SKEW, plane_out = size_t(per_block) * PANEL + SKEW;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    parallel_for(threads, threads, [&](int64_t, int64_t) {
        float* in = scratch.floats(POINTS * (plane_in + plane_out));
        if (!in) failed = true;
        float* out = in + POINTS * plane_in;
        for (int64_t first; !failed && (first = next++ * per_block) < tiles;) {
            int count = tiles - first < per_block ? int(tiles - first) : per_block;
            for (int t = 0; t < count; t++) tile_input(x, s, Place(first + t, s), in + size_t(t) * channels, plane_in);
            for (int j = 0; j < panels; j++) {
                multiply_panel(in, plane_in, channels, u + size_t(j) * POINTS * panel_plane(s.C), s.C, out, plane_out, count);
                for (int t = 0; t < count; t++)
                    for (int o = 0; o < PANEL && j * PANEL + o < s.O; o += LANES)
                        tile_output(out + size_t(t) * PANEL + o, plane_out, bias, y, s, Place(first + t, s),
                                    j * PANEL + o);
            }
        }
    });
    return failed;
}

// Calls point(i, u) for each of the 36 transformed values u of a 3x3 kernel g [9].
template <class Point>
inline void transform_kernel(const Floats* g, const Point& point) {
    Floats e[18];
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 3; j++)
            e[i * 3 + j] = WEIGHTS[i][0] * g[j] + WEIGHTS[i][1] * g[3 + j] + WEIGHTS[i][2] * g[6 + j];
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++)
            point(i * 6 + j, e[i * 3] * WEIGHTS[j][0] + e[i * 3 + 1] * WEIGHTS[j][1] + e[i * 3 + 2] * WEIGHTS[j][2]);
}

inline Floats rounded(Floats value) { return widen(narrow(value)); }

// Transforms the weights of LANES outputs from o and LANES inputs from c. half: they are rounded to bf16 first.
void transform_weights(const float* w, float* u, int O, int C, int o, int c, bool half) {
    // Lanes are outputs, so that the results are written as they are read later.
    float kernels[9][LANES][LANES] = {};
    for (int r = 0; r < LANES && o + r < O; r++)
        for (int k = 0; k < 9; k++) {
            float values[LANES];
            store(values, load(w + (size_t(o + r) * 9 + k) * C + c, C - c));
            for (int i = 0; i < LANES; i++) kernels[k][i][r] = values[i];
        }
    float* to = u + (size_t(o / PANEL) * POINTS * panel_plane(C)) + size_t(c) * PANEL + o % PANEL;
    for (int i = 0; i < LANES && c + i < C; i++, to += PANEL) {
        Floats g[9];
        for (int k = 0; k < 9; k++) g[k] = half ? rounded(load(kernels[k][i])) : load(kernels[k][i]);
        transform_kernel(g, [&](int k, Floats value) { store(to + k * panel_plane(C), value); });
    }
}

// Transforms the weights of output o and LANES inputs from c for the gradient of the image: a convolution from O to C
// channels with the kernels turned by 180 degrees.
void transform_turned(const float* w, float* u, int O, int C, int o, int c, bool half) {
    Floats g[9] = {};
    // Beyond C, the panel is filled with zeros.
    for (int k = 0; c < C && k < 9; k++) g[8 - k] = load(w + (size_t(o) * 9 + k) * C + c, C - c);
    for (int k = 0; half && k < 9; k++) g[k] = rounded(g[k]);
    float* to = u + size_t(c / PANEL) * POINTS * panel_plane(O) + size_t(o) * PANEL + c % PANEL;
    transform_kernel(g, [&](int k, Floats value) { store(to + k * panel_plane(O), value); });
}

// w [O, 3, 3, C] -> u [O / PANEL, 36, C, PANEL], the transformed weights in panels of output channels. Points are
// panel_plane(C) numbers apart.
void transform(const float* w, float* u, int O, int C, bool half, int threads) {
    int blocks_in = (C + LANES - 1) / LANES, blocks_out = round_up(O, PANEL) / LANES;
    parallel_for(int64_t(blocks_in) * blocks_out, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
            transform_weights(w, u, O, C, int(i / blocks_in) * LANES, int(i % blocks_in) * LANES, half);
    });
}

// w [O, 3, 3, C] -> u [C / PANEL, 36, O, PANEL], the weights that compute the gradient of the image.
void transform_all_turned(const float* w, float* u, int O, int C, bool half, int threads) {
    int blocks = round_up(C, PANEL) / LANES;
    parallel_for(int64_t(blocks) * O, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) transform_turned(w, u, O, C, int(i % O), int(i / O) * LANES, half);
    });
}

size_t transformed_size(int O, int C) { return POINTS * panel_plane(C) * (round_up(O, PANEL) / PANEL); }

// What the weights of a call are: transformed ones, those of the convolution, or those whose transposed convolution
// computes the gradient of the image.
enum Form { TRANSFORMED, PLAIN, TURNED };

// Returns the transformed weights of a convolution from C to O channels, or a null pointer if there is no memory.
const float* transformed(const float* w, Form form, const Shape& s, bool half, int threads) {
    if (form == TRANSFORMED) return w;
    float* u = scratch_for_weights.floats(transformed_size(s.O, s.C));
    if (!u) return nullptr;
    if (form == PLAIN)
        transform(w, u, s.O, s.C, half, threads);
    else
        transform_all_turned(w, u, s.C, s.O, half, threads);
    return u;
}

}  // namespace

extern "C" {

// The number of floats that fcg_winograd_weight writes.
int64_t fcg_winograd_size(int O, int C) { return transformed_size(O, C); }

// w [O, 3, 3, C] -> u, the weights as fcg_winograd reads them with form TRANSFORMED. half: they are rounded to bf16.
int fcg_winograd_weight(int half, const float* w, float* u, int O, int C, int threads) {
    transform(w, u, O, C, half, threads);
    return 0;
}

// y [N, H + 2 pad - 2, W + 2 pad - 2, O] = the convolution of x [N, H, W, C], padded by reflection or by zeros,
// plus bias [O] or null. The weights w are of the given form: [O, 3, 3, C], or [C, 3, 3, O] if they are turned. Returns
// 1 if there is no memory. half: x is bf16, and weights that are not transformed are rounded; half_out: y is bf16.
int fcg_winograd(int half, int half_out, int form, const void* x, const float* w, const float* bias, void* y, int N,
                 int H, int W, int C, int O, int pad, int reflect, int threads) {
    Shape s{N, H, W, C, O, pad, reflect != 0};
    const float* u = transformed(w, Form(form), s, half, threads);
    if (!u) return 1;
    if (!half) return convolve((const float*)x, u, bias, (float*)y, s, threads);
    if (half_out) return convolve((const bf16*)x, u, bias, (bf16*)y, s, threads);
    return convolve((const bf16*)x, u, bias, (float*)y, s, threads);
}
}
