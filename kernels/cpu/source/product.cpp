#include "product.h"

namespace {

// Products that are summed before they are added to the result: long sums in fp32 lose accuracy.
constexpr int PART = 64;

template <int R>
void multiply_rows(const Product& in) {
    const float* panel = in.panel;
    Floats sum[R][2] = {};
    int summed = 0;
    bool is_first = true;
    for (int run = 0; run < in.runs; run++)
        for (int start = 0; start < in.K; start += PART) {
            const float* a = in.a + run * in.a_next + start;
            int count = in.K - start < PART ? in.K - start : PART;
            for (int k = 0; k < count; k++, panel += PANEL) {
                Floats left = load(panel), right = load(panel + LANES);
#pragma GCC unroll 14
                for (int r = 0; r < R; r++) {
                    Floats value = splat(a[r * in.a_step + k]);
                    sum[r][0] += value * left;
                    sum[r][1] += value * right;
                }
            }
            summed += count;
            bool is_last = run == in.runs - 1 && start + count == in.K;
            if (summed < PART && !is_last) continue;
            // Unrolled as well: an index that is not constant would keep the sums in memory.
#pragma GCC unroll 14
            for (int r = 0; r < R; r++) {
                float* out = in.out + r * PANEL;
                store(out, is_first ? sum[r][0] : load(out) + sum[r][0]);
                store(out + LANES, is_first ? sum[r][1] : load(out + LANES) + sum[r][1]);
                sum[r][0] = sum[r][1] = Floats{};
            }
            summed = 0;
            is_first = false;
        }
}

template <int R>
void multiply_column_rows(const ColumnProduct& in) {
    for (int start = 0; start < in.K; start += PART) {
        const float *a = in.a + start * in.a_next, *b = in.b + start * in.b_next;
        Floats sum[R][2] = {};
        int count = in.K - start < PART ? in.K - start : PART;
        for (int k = 0; k < count; k++, a += in.a_next, b += in.b_next) {
            Floats left = load(b), right = load(b + LANES);
#pragma GCC unroll 14
            for (int r = 0; r < R; r++) {
                Floats value = splat(a[r]);
                sum[r][0] += value * left;
                sum[r][1] += value * right;
            }
        }
        bool add = in.add || start > 0;
#pragma GCC unroll 14
        for (int r = 0; r < R; r++) {
            float* out = in.out + r * in.out_step;
            store(out, add ? load(out) + sum[r][0] : sum[r][0]);
            store(out + LANES, add ? load(out + LANES) + sum[r][1] : sum[r][1]);
        }
    }
}

// Calls the instance of a function for `rows`.
#define CASE(R, function, argument) \
    case R: return function<R>(argument);
#if !defined(__AVX2__) || defined(__AVX512F__)
#define MORE_ROWS(function, argument)                                                             \
    CASE(14, function, argument) CASE(13, function, argument) CASE(12, function, argument)        \
    CASE(11, function, argument) CASE(10, function, argument) CASE(9, function, argument)         \
    CASE(8, function, argument) CASE(7, function, argument)
#else
#define MORE_ROWS(function, argument)
#endif
#define FOR_ROWS(function, rows, argument)                                                     \
    switch (rows) {                                                                            \
        MORE_ROWS(function, argument)                                                          \
        CASE(6, function, argument) CASE(5, function, argument) CASE(4, function, argument)    \
        CASE(3, function, argument) CASE(2, function, argument) CASE(1, function, argument)    \
    }

}  // namespace

void multiply(const Product& product, int rows) { FOR_ROWS(multiply_rows, rows, product) }

void multiply_columns(const ColumnProduct& product, int rows) { FOR_ROWS(multiply_column_rows, rows, product) }
