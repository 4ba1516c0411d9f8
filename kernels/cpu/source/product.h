// Products of a few rows with a packed panel of columns.
#pragma once
#include "vectors.h"

// Columns of a panel: two vectors.
constexpr int PANEL = 2 * LANES;
// Rows whose sums fit into the registers beside two vectors of the panel.
constexpr int ROWS = REGISTERS == 32 ? 14 : 6;

// A product out[r][:] = sum over k of a[r][k] * panel[k][:]. The sum consists of `runs` runs of K numbers: those
// of a row of A are `a_next` numbers apart, those of the panel follow one another. Rows of A are `a_step` numbers
// apart, rows of the result PANEL.
struct Product {
    const float* a;
    size_t a_step, a_next;
    const float* panel;
    int K, runs;
    float* out;
};

// Computes `rows` <= ROWS rows.
void multiply(const Product& product, int rows);

// A product of columns: out[r][0:PANEL] = sum over k of a[r + k * a_next] * b[k * b_next + 0:PANEL], or is increased
// by it if `add`. Rows of the result are `out_step` numbers apart.
struct ColumnProduct {
    const float* a;
    size_t a_next;
    const float* b;
    size_t b_next;
    int K;
    float* out;
    size_t out_step;
    bool add;
};

// Computes `rows` <= ROWS rows.
void multiply_columns(const ColumnProduct& product, int rows);

// The rows per block if `count` rows are cut into equal blocks of at most ROWS.
static inline int rows_per_block(int count) {
    int blocks = (count + ROWS - 1) / ROWS;
    return (count + blocks - 1) / blocks;
}
