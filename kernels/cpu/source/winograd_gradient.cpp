// The gradients of the weights of 3x3 convolutions with stride 1, by Winograd's algorithm: see winograd.h.
//
// The transforms of the image and of the output's gradient are multiplied point by point and summed over the tiles;
// the sums are transformed back to the weights.
#include <atomic>

#include "kernels.h"
#include "product.h"
#include "scratch.h"
#include "threads.h"
#include "winograd.h"

namespace {

using namespace winograd;

// to = the transform of four numbers y.
inline void transform_gradient(const Floats* y, int step, Floats* to, int to_step) {
    Floats y0 = y[0], y1 = y[step], y2 = y[2 * step], y3 = y[3 * step];
    to[0] = y0;
    Floats even = y0 + AA * y2, odd = A * (y1 + AA * y3);
    to[to_step] = even + odd;
    to[2 * to_step] = even - odd;
    even = y0 + BB * y2, odd = B * (y1 + BB * y3);
    to[3 * to_step] = even + odd;
    to[4 * to_step] = even - odd;
    to[5 * to_step] = y3;
}

// Writes the transformed gradient of one tile of outputs: point k of channel o to to[k * plane + o].
template <class T>
void tile_gradient(const T* g, const Shape& s, Place place, float* to, size_t plane) {
    const T* image = g + size_t(place.n) * s.rows() * s.columns() * s.O;
    for (int o = 0; o < s.O; o += LANES) {
        Floats d[TILE * TILE], e[WINDOW * TILE], result[POINTS];
        for (int i = 0; i < TILE; i++)
            for (int j = 0; j < TILE; j++) {
                bool inside = place.h + i < s.rows() && place.w + j < s.columns();
                size_t pixel = inside ? size_t(place.h + i) * s.columns() + place.w + j : 0;
                d[i * TILE + j] = inside ? load(image + pixel * s.O + o, s.O - o) : Floats{};
            }
        for (int j = 0; j < TILE; j++) transform_gradient(d + j, TILE, e + j, TILE);
        for (int i = 0; i < WINDOW; i++) transform_gradient(e + i * TILE, 1, result + i * WINDOW, 1);
        for (int k = 0; k < POINTS; k++) store(to + k * plane + o, result[k]);
    }
}

// Transforms the sums at all points, of output o and LANES inputs from c, to the weights w[k * step].
void transform_back(const float* sums, size_t plane, float* w, int step, int lanes, bool add) {
    Floats u[POINTS], e[18];
    for (int k = 0; k < POINTS; k++) u[k] = load(sums + k * plane);
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 6; j++) {
            Floats value{};
            for (int k = 0; k < 6; k++) value += WEIGHTS[k][i] * u[k * 6 + j];
            e[i * 6 + j] = value;
        }
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) {
            Floats value{};
            for (int k = 0; k < 6; k++) value += WEIGHTS[k][j] * e[i * 6 + k];
            float* to = w + size_t(i * 3 + j) * step;
            store(to, add ? load(to, lanes) + value : value, lanes);
        }
}

// Tiles whose transforms are kept at a time.
constexpr int BLOCK = 256;

// The length of a row of transforms. Rows do not compete for the same places of a cache.
inline int row_length(int channels) { return round_up(channels, PANEL) + LANES; }

template <class TG, class TX>
int gradient(const TG* g, const TX* x, float* w, const Shape& s, bool add, int threads) {
    int64_t tiles = s.tiles(), blocks = (tiles + BLOCK - 1) / BLOCK;
    int per_block = int((tiles + blocks - 1) / blocks), rows = rows_per_block(s.O), panels = (s.C + PANEL - 1) / PANEL;
    int x_row = row_length(s.C), g_row = row_length(s.O);
    size_t x_plane = size_t(per_block) * x_row + SKEW, g_plane = size_t(per_block) * g_row + SKEW;
    size_t panel = size_t(s.O) * PANEL, plane = panels * panel + SKEW;
    float* xs = scratch_for_call().floats(POINTS * (x_plane + g_plane + plane));
    if (!xs) return 1;
    float *gs = xs + POINTS * x_plane, *sums = gs + POINTS * g_plane;
    for (int64_t first = 0; first < tiles; first += per_block) {
        int count = tiles - first < per_block ? int(tiles - first) : per_block;
        parallel_for(count, threads, [&](int64_t begin, int64_t end) {
            for (int64_t t = begin; t < end; t++) {
                tile_input(x, s, Place(first + t, s), xs + size_t(t) * x_row, x_plane);
                tile_gradient(g, s, Place(first + t, s), gs + size_t(t) * g_row, g_plane);
            }
        });
        parallel_for(int64_t(POINTS) * panels, threads, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++) {
                size_t k = i / panels, j = i % panels;
                for (int o = 0; o < s.O; o += rows)
                    multiply_columns({gs + k * g_plane + o, size_t(g_row), xs + k * x_plane + j * PANEL,
                                      size_t(x_row), count, sums + k * plane + j * panel + size_t(o) * PANEL,
                                      PANEL, first > 0},
                                     s.O - o < rows ? s.O - o : rows);
            }
        });
    }
    parallel_for(s.O, threads, [&](int64_t begin, int64_t end) {
        for (int64_t o = begin; o < end; o++)
            for (int c = 0; c < s.C; c += LANES)
                transform_back(sums + (c / PANEL) * panel + size_t(o) * PANEL + c % PANEL, plane,
                               w + size_t(o) * 9 * s.C + c, s.C, s.C - c, add);
    });
    return 0;
}

}  // namespace

int fcg_winograd_gradient(int half, const void* g, const void* x, float* w, int N, int H, int W, int C, int O, int pad,
                          int reflect, int add, int threads) {
    Shape s{N, H, W, C, O, pad, reflect != 0};
    if (half) return gradient((const bf16*)g, (const bf16*)x, w, s, add, threads);
    return gradient((const float*)g, (const float*)x, w, s, add, threads);
}
