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
#if defined(__AVX512F__)
#define FOR_ROWS(function, rows, argument)        \
    switch (rows) {                               \
        case 14: return function<14>(argument);   \
        case 13: return function<13>(argument);   \
        case 12: return function<12>(argument);   \
        case 11: return function<11>(argument);   \
        case 10: return function<10>(argument);   \
        case 9: return function<9>(argument);     \
        case 8: return function<8>(argument);     \
        case 7: return function<7>(argument);     \
        case 6: return function<6>(argument);     \
        case 5: return function<5>(argument);     \
        case 4: return function<4>(argument);     \
        case 3: return function<3>(argument);     \
        case 2: return function<2>(argument);     \
        case 1: return function<1>(argument);     \
    }
#else
#define FOR_ROWS(function, rows, argument)        \
    switch (rows) {                               \
        case 6: return function<6>(argument);     \
        case 5: return function<5>(argument);     \
        case 4: return function<4>(argument);     \
        case 3: return function<3>(argument);     \
        case 2: return function<2>(argument);     \
        case 1: return function<1>(argument);     \
    }
#endif

}  // namespace

void multiply(const Product& product, int rows) { FOR_ROWS(multiply_rows, rows, product) }

void multiply_columns(const ColumnProduct& product, int rows) { FOR_ROWS(multiply_column_rows, rows, product) }
