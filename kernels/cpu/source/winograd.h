// The transforms of Winograd's F(4x4, 3x3), and the tiles of an image: 36 products for 16 outputs instead of 144.
//
// Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015. The points are 0, +-3/4,
// +-3/2 and infinity: with the usual 0, +-1, +-2, rounding errors exceed those that PyTorch's convolution allows.
#pragma once
#include "border.h"
#include "vectors.h"

namespace winograd {

constexpr float A = 0.75f, B = 1.5f, AA = A * A, BB = B * B;
constexpr int POINTS = 36, TILE = 4, WINDOW = 6;
// Numbers by which planes are shifted against each other, so that they do not compete for the same places of a cache.
constexpr int SKEW = 80;

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
                size_t pixel = inside ? size_t(rows[i]) * s.W + columns[j] : 0;
                d[i * WINDOW + j] = inside ? load(image + pixel * s.C + c, s.C - c) : Floats{};
            }
        for (int j = 0; j < WINDOW; j++) transform_input(d + j, WINDOW, e + j, WINDOW);
        for (int i = 0; i < WINDOW; i++) transform_input(e + i * WINDOW, 1, d + i * WINDOW, 1);
        for (int k = 0; k < POINTS; k++) store(to + k * plane + c, d[k]);
    }
}

}  // namespace winograd
