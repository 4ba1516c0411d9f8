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

}  // namespace

void multiply(const Product& product, int rows) {
    switch (rows) {
#if defined(__AVX512F__)
        case 14: return multiply_rows<14>(product);
        case 13: return multiply_rows<13>(product);
        case 12: return multiply_rows<12>(product);
        case 11: return multiply_rows<11>(product);
        case 10: return multiply_rows<10>(product);
        case 9: return multiply_rows<9>(product);
        case 8: return multiply_rows<8>(product);
        case 7: return multiply_rows<7>(product);
#endif
        case 6: return multiply_rows<6>(product);
        case 5: return multiply_rows<5>(product);
        case 4: return multiply_rows<4>(product);
        case 3: return multiply_rows<3>(product);
        case 2: return multiply_rows<2>(product);
        case 1: return multiply_rows<1>(product);
    }
}
