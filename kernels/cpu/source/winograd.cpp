// 3x3 convolutions with stride 1 by Winograd's F(4x4, 3x3), and their gradients for the image: see winograd.h.
#include "winograd.h"

#include <atomic>

#include "kernels.h"
#include "product.h"
#include "scratch.h"
#include "threads.h"

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

// Numbers between the points of a panel of C inputs. They do not compete for the same places of a cache.
inline size_t panel_plane(int C) { return size_t(C) * PANEL + SKEW; }

// Writes the transformed weights of LANES outputs from o and LANES inputs from c to u [36, C, PANEL]. half: they are
// rounded to bf16 first.
void transform_weights(const float* w, float* u, int O, int C, int o, int c, bool half) {
    // Lanes are outputs, so that the results are written as they are read later.
    float kernels[9][LANES][LANES] = {};
    for (int r = 0; r < LANES && o + r < O; r++)
        for (int k = 0; k < 9; k++) {
            float values[LANES];
            store(values, load(w + (size_t(o + r) * 9 + k) * C + c, C - c));
            for (int i = 0; i < LANES; i++) kernels[k][i][r] = values[i];
        }
    float* to = u + size_t(c) * PANEL;
    for (int i = 0; i < LANES && c + i < C; i++, to += PANEL) {
        Floats g[9];
        for (int k = 0; k < 9; k++) g[k] = half ? rounded(load(kernels[k][i])) : load(kernels[k][i]);
        transform_kernel(g, [&](int k, Floats value) { store(to + k * panel_plane(C), value); });
    }
}

// Writes the transformed weights of output o and LANES inputs from c to u, whose points are panel_plane(O) numbers
// apart. They are those of the gradient of the image: a convolution from O to C channels with the kernels turned by 180
// degrees.
void transform_turned(const float* w, float* u, int O, int C, int o, int c, bool half) {
    Floats g[9] = {};
    // Beyond C, the panel is filled with zeros.
    for (int k = 0; c < C && k < 9; k++) g[8 - k] = load(w + (size_t(o) * 9 + k) * C + c, C - c);
    for (int k = 0; half && k < 9; k++) g[k] = rounded(g[k]);
    transform_kernel(g, [&](int k, Floats value) { store(u + k * panel_plane(O), value); });
}

// What the weights of a call are: transformed ones, those of the convolution, or those whose transposed convolution
// computes the gradient of the image.
enum Form { TRANSFORMED, PLAIN, TURNED };

// The weights of a convolution from C to O channels. half: plain and turned ones are rounded to bf16.
struct Weights {
    const float* w;
    Form form;
    int O, C;
    bool half;
    size_t panel_size() const { return POINTS * panel_plane(C); }
    int panels() const { return (O + PANEL - 1) / PANEL; }
    // Transforms the weights of panel j to u [36, C, PANEL], whose points are panel_plane(C) numbers apart.
    void transform(int j, float* u) const {
        for (int i = 0; i < PANEL; i += LANES) {
            int o = j * PANEL + i;
            if (form == PLAIN)
                for (int c = 0; c < C; c += LANES) transform_weights(w, u + i, O, C, o, c, half);
            else
                for (int c = 0; c < C; c++) transform_turned(w, u + i + size_t(c) * PANEL, C, O, c, o, half);
        }
    }
};

// Transforms all weights to u [O / PANEL, 36, C, PANEL].
void transform_all(const Weights& weights, float* u, int threads) {
    parallel_for(weights.panels(), threads, [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; j++) weights.transform(int(j), u + j * weights.panel_size());
    });
}

// Tiles whose transforms are kept at a time, for each of the parts in which panels are shared out among threads.
constexpr int BLOCK = 128;

// How a convolution is shared out: the transforms of a block of tiles are made first; then each job multiplies one
// panel of weights with one part of the tiles.
struct Plan {
    int per_block, per_part, parts, row;
    size_t plane, plane_out;
    Plan(const Shape& s, int panels, int threads) {
        // Panels are read once if the tiles are not parted, but every thread needs its share of jobs.
        parts = panels >= 3 * threads ? 1 : (3 * threads + panels - 1) / panels;
        int64_t tiles = s.tiles(), block = int64_t(BLOCK) * parts, blocks = (tiles + block - 1) / block;
        per_block = int((tiles + blocks - 1) / blocks);
        per_part = (per_block + parts - 1) / parts;
        parts = (per_block + per_part - 1) / per_part;
        row = round_up(s.C, LANES);
        // Rows of transforms do not compete for the same places of a cache.
        if (row % 64 == 0) row += LANES;
        plane = size_t(per_block) * row + SKEW;
        plane_out = size_t(per_part) * PANEL + SKEW;
    }
    bool is_one_block(const Shape& s) const { return per_block >= s.tiles(); }
};

// Multiplies the transforms of `count` tiles with one panel of the transformed weights, point by point.
void multiply_panel(const float* in, const Plan& plan, const float* panel, int C, float* out, int count) {
    int rows = rows_per_block(count);
    for (int k = 0; k < POINTS; k++)
        for (int t = 0; t < count; t += rows) {
            Product part{in + k * plan.plane + size_t(t) * plan.row, size_t(plan.row), 0, panel + k * panel_plane(C), C,
                         1, out + k * plan.plane_out + size_t(t) * PANEL};
            multiply(part, count - t < rows ? count - t : rows);
        }
}

template <class T, class To>
int convolve(const T* x, const Weights& weights, const float* bias, To* y, const Shape& s, int threads) {
    int panels = weights.panels();
    Plan plan(s, panels, threads);
    bool is_transformed = weights.form == TRANSFORMED;
    // A panel that is used once is transformed by its job, into memory that is in a cache of its thread.
    bool in_job = !is_transformed && plan.is_one_block(s) && plan.parts == 1;
    bool all = !is_transformed && !in_job;
    float* in = scratch_for_call().floats(POINTS * plan.plane + (all ? panels * weights.panel_size() : 0));
    if (!in) return 1;
    float* all_panels = in + POINTS * plan.plane;
    if (all) transform_all(weights, all_panels, threads);
    const float* u = is_transformed ? weights.w : all_panels;
    std::atomic<bool> failed{false};
    for (int64_t first = 0; first < s.tiles(); first += plan.per_block) {
        int count = s.tiles() - first < plan.per_block ? int(s.tiles() - first) : plan.per_block;
        parallel_for(count, threads, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++)
                tile_input(x, s, Place(first + t, s), in + size_t(t) * plan.row, plan.plane);
        });
        parallel_for(int64_t(panels) * plan.parts, threads, [&](int64_t begin, int64_t end) {
            float* out = scratch().floats(POINTS * plan.plane_out + (in_job ? weights.panel_size() : 0));
            if (!out) failed = true;
            for (int64_t job = begin; out && job < end; job++) {
                int j = int(job / plan.parts), t = int(job % plan.parts) * plan.per_part;
                int tiles = count - t < plan.per_part ? count - t : plan.per_part;
                if (tiles <= 0) continue;  // the last block is shorter, and can end before its last parts
                float* own = out + POINTS * plan.plane_out;
                if (in_job) weights.transform(j, own);
                const float* panel = in_job ? own : u + j * weights.panel_size();
                multiply_panel(in + size_t(t) * plan.row, plan, panel, s.C, out, tiles);
                for (int i = 0; i < tiles; i++)
                    for (int o = 0; o < PANEL && j * PANEL + o < s.O; o += LANES)
                        tile_output(out + size_t(i) * PANEL + o, plan.plane_out, bias, y, s, Place(first + t + i, s),
                                    j * PANEL + o);
            }
        });
    }
    return failed;
}

}  // namespace

int64_t fcg_winograd_size(int O, int C) {
    Weights weights{nullptr, PLAIN, O, C, false};
    return weights.panels() * weights.panel_size();
}

int fcg_winograd_weight(int half, const float* w, float* u, int O, int C, int threads) {
    transform_all({w, PLAIN, O, C, half != 0}, u, threads);
    return 0;
}

int fcg_winograd(int half, int half_out, int form, const void* x, const float* w, const float* bias, void* y, int N,
                 int H, int W, int C, int O, int pad, int reflect, int threads) {
    Shape s{N, H, W, C, O, pad, reflect != 0};
    Weights weights{w, Form(form), O, C, half != 0};
    if (!half) return convolve((const float*)x, weights, bias, (float*)y, s, threads);
    if (half_out) return convolve((const bf16*)x, weights, bias, (bf16*)y, s, threads);
    return convolve((const bf16*)x, weights, bias, (float*)y, s, threads);
}
