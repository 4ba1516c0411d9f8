// 3x3 convolutions with stride 1 by Winograd's F(4x4, 3x3): 36 products for 16 outputs instead of 144.
//
// Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015. The points are 0, +-3/4,
// +-3/2 and infinity: with the usual 0, +-1, +-2, rounding errors exceed those that PyTorch's convolution allows.
#include <atomic>

#include "parallel.h"
#include "product.h"

namespace {

constexpr float A = 0.75f, B = 1.5f, AA = A * A, BB = B * B;
constexpr int POINTS = 36, TILE = 4, WINDOW = 6;

// to = the transform of six inputs d.
inline void transform_input(const Floats* d, int step, Floats* to, int to_step) {
    Floats d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    to[0] = AA * BB * d0 - (AA + BB) * d2 + d4;
    Floats even = d4 - BB * d2, odd = A * (d3 - BB * d1);
    to[to_step] = even + odd;
    to[2 * to_step] = even - odd;
    even = d4 - AA * d2, odd = B * (d3 - AA * d1);
    to[3 * to_step] = even + odd;
    to[4 * to_step] = even - odd;
    to[5 * to_step] = AA * BB * d1 - (AA + BB) * d3 + d5;
}

// to = four outputs, from six products m.
inline void transform_output(const Floats* m, int step, Floats* to, int to_step) {
    Floats a = m[step] + m[2 * step], b = A * (m[step] - m[2 * step]);
    Floats c = m[3 * step] + m[4 * step], d = B * (m[3 * step] - m[4 * step]);
    to[0] = m[0] + a + c;
    to[to_step] = b + d;
    to[2 * to_step] = AA * a + BB * c;
    to[3 * to_step] = AA * b + BB * d + m[5 * step];
}

constexpr float NA = 1 / (2 * AA * (AA - BB)), NB = 1 / (2 * BB * (BB - AA));
constexpr float WEIGHTS[6][3] = {{1 / (AA * BB), 0, 0}, {NA, A * NA, AA* NA},  {NA, -A* NA, AA* NA},
                                 {NB, B* NB, BB* NB},   {NB, -B* NB, BB* NB}, {0, 0, 1}};

struct Shape {
    int N, H, W, C, O, pad;
    bool reflect;
    int rows() const { return H + 2 * pad - 2; }
    int columns() const { return W + 2 * pad - 2; }
    int tile_rows() const { return (rows() + TILE - 1) / TILE; }
    int tile_columns() const { return (columns() + TILE - 1) / TILE; }
    int64_t tiles() const { return int64_t(N) * tile_rows() * tile_columns(); }
};

// Tile number t as image and first output pixel.
struct Place {
    int n, h, w;
    Place(int64_t t, const Shape& s) {
        w = int(t % s.tile_columns()) * TILE;
        h = int(t / s.tile_columns() % s.tile_rows()) * TILE;
        n = int(t / s.tile_columns() / s.tile_rows());
    }
};

// Fills `index` with the input lines of a window that starts at `start`; -1 stands for a line of zeros.
inline void window_lines(int start, int size, const Shape& s, int* index) {
    for (int i = 0; i < WINDOW; i++) {
        int line = start + i;
        // Beyond the padding: the last tile's surplus, whose outputs are not written.
        bool surplus = line >= size + s.pad;
        if (s.reflect && !surplus) line = reflected(line, size);
        index[i] = surplus || line < 0 || line >= size ? -1 : line;
    }
}

// Writes the transformed window of one tile: point k of channel c to to[k * plane + c].
template <class T>
void tile_input(const T* x, const Shape& s, Place place, float* to, size_t plane) {
    int rows[WINDOW], columns[WINDOW];
    window_lines(place.h - s.pad, s.H, s, rows);
    window_lines(place.w - s.pad, s.W, s, columns);
    const T* image = x + size_t(place.n) * s.H * s.W * s.C;
    for (int c = 0; c < s.C; c += LANES) {
        Floats d[POINTS], e[POINTS];
        for (int i = 0; i < WINDOW; i++)
            for (int j = 0; j < WINDOW; j++) {
                bool inside = rows[i] >= 0 && columns[j] >= 0;
                const T* pixel = image + (size_t(rows[i]) * s.W + columns[j]) * s.C + c;
                d[i * WINDOW + j] = inside ? load(pixel, s.C - c) : Floats{};
            }
        for (int j = 0; j < WINDOW; j++) transform_input(d + j, WINDOW, e + j, WINDOW);
        for (int i = 0; i < WINDOW; i++) transform_input(e + i * WINDOW, 1, d + i * WINDOW, 1);
        for (int k = 0; k < POINTS; k++) store(to + k * plane + c, d[k]);
    }
}

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
// Numbers by which planes are shifted against each other, so that they do not compete for the same places of a cache.
constexpr int SKEW = 80;

// Multiplies the transforms of `count` tiles with one panel of the transformed weights, point by point.
void multiply_panel(const float* in, size_t plane_in, int channels, const float* panel, int C, float* out,
                    size_t plane_out, int count) {
    int rows = rows_per_block(count);
    for (int k = 0; k < POINTS; k++)
        for (int t = 0; t < count; t += rows) {
            Product part{in + k * plane_in + size_t(t) * channels, size_t(channels), 0, panel + size_t(k) * C * PANEL,
                         C, 1, out + k * plane_out + size_t(t) * PANEL};
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
                multiply_panel(in, plane_in, channels, u + size_t(j) * POINTS * s.C * PANEL, s.C, out, plane_out, count);
                for (int t = 0; t < count; t++)
                    for (int o = 0; o < PANEL && j * PANEL + o < s.O; o += LANES)
                        tile_output(out + size_t(t) * PANEL + o, plane_out, bias, y, s, Place(first + t, s),
                                    j * PANEL + o);
            }
        }
    });
    return failed;
}

// Transforms the weights of LANES outputs from o and LANES inputs from c.
void transform_weights(const float* w, float* u, int O, int C, int o, int c) {
    float block[POINTS][LANES][LANES] = {};
    for (int r = 0; r < LANES && o + r < O; r++) {
        Floats g[9], e[18];
        for (int k = 0; k < 9; k++) g[k] = load(w + (size_t(o + r) * 9 + k) * C + c, C - c);
        for (int i = 0; i < 6; i++)
            for (int j = 0; j < 3; j++)
                e[i * 3 + j] = WEIGHTS[i][0] * g[j] + WEIGHTS[i][1] * g[3 + j] + WEIGHTS[i][2] * g[6 + j];
        for (int i = 0; i < 6; i++)
            for (int j = 0; j < 6; j++)
                store(block[i * 6 + j][r],
                      e[i * 3] * WEIGHTS[j][0] + e[i * 3 + 1] * WEIGHTS[j][1] + e[i * 3 + 2] * WEIGHTS[j][2]);
    }
    for (int k = 0; k < POINTS; k++)
        for (int i = 0; i < LANES && c + i < C; i++) {
            float* to = u + ((size_t(o / PANEL) * POINTS + k) * C + c + i) * PANEL + o % PANEL;
            for (int r = 0; r < LANES; r++) to[r] = block[k][r][i];
        }
}

}  // namespace

extern "C" {

// The number of floats that fcg_winograd_weight writes.
int64_t fcg_winograd_size(int O, int C, int) { return int64_t(POINTS) * C * round_up(O, PANEL); }

// w [O, 3, 3, C] -> u [O / PANEL, 36, C, PANEL], the transformed weights in panels of output channels.
int fcg_winograd_weight(const float* w, float* u, int O, int C, int, int threads) {
    int blocks_in = (C + LANES - 1) / LANES, blocks_out = round_up(O, PANEL) / LANES;
    parallel_for(int64_t(blocks_in) * blocks_out, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
            transform_weights(w, u, O, C, int(i / blocks_in) * LANES, int(i % blocks_in) * LANES);
    });
    return 0;
}

// y [N, H + 2 pad - 2, W + 2 pad - 2, O] = the convolution of x [N, H, W, C], padded by reflection or by zeros,
// plus bias [O] or null. Returns 1 if there is no memory. half: x is bf16; half_out: y is bf16.
int fcg_winograd(int half, int half_out, const void* x, const float* u, const float* bias, void* y, int N, int H, int W,
                 int C, int O, int pad, int reflect, int threads) {
    Shape s{N, H, W, C, O, pad, reflect != 0};
    if (!half) return convolve((const float*)x, u, bias, (float*)y, s, threads);
    if (half_out) return convolve((const bf16*)x, u, bias, (bf16*)y, s, threads);
    return convolve((const bf16*)x, u, bias, (float*)y, s, threads);
}
}
