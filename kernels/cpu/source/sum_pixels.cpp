// Sums over all pixels: the gradients of biases.
#include "kernels.h"
#include "scratch.h"
#include "threads.h"
#include "vectors.h"

namespace {

// Pixels whose sums are taken together, and those of a job.
constexpr int64_t PART = 64, MANY = 16 * PART;

// to [C] = the sums of g [P, C], in parts that do not depend on the threads.
template <class T>
int sum_all(const T* g, float* to, int64_t P, int C, int threads) {
    int64_t count = (P + MANY - 1) / MANY;
    float* lines = scratch_for_call().floats(size_t(count) * C);
    if (!lines) return 1;
    parallel_for(count, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
            for (int c = 0; c < C; c += LANES) {
                Floats total{};
                for (int64_t start = i * MANY; start < P && start < (i + 1) * MANY; start += PART) {
                    Floats part{};
                    for (int64_t p = start; p < P && p < start + PART; p++) part += load(g + p * C + c, C - c);
                    total += part;
                }
                store(lines + size_t(i) * C + c, total, C - c);
            }
    });
    for (int c = 0; c < C; c++) {
        float total = 0;
        for (int64_t i = 0; i < count; i++) total += lines[size_t(i) * C + c];
        to[c] = total;
    }
    return 0;
}

}  // namespace

int fcg_sum_pixels(int half, const void* g, float* to, int64_t P, int C, int threads) {
    if (half) return sum_all((const bf16*)g, to, P, C, threads);
    return sum_all((const float*)g, to, P, C, threads);
}
