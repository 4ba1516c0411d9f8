// Loops over several threads, which are those of the OpenMP runtime that PyTorch has loaded.
//
// The runtime's own functions are called instead of `#pragma omp`: then nothing is linked, so that no second
// runtime is loaded, and every compiler makes the same calls.
#pragma once
#include <cstdint>

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}

// Calls body(begin, end) for consecutive parts of [0, count), one for each thread.
template <class Body>
inline void parallel_for(int64_t count, int threads, const Body& body) {
    if (threads > count) threads = int(count);
    if (threads <= 1) {
        if (count > 0) body(int64_t(0), count);
        return;
    }
    struct Job {
        const Body& body;
        int64_t count;
    } job{body, count};
    GOMP_parallel(
        [](void* data) {
            const Job& job = *static_cast<const Job*>(data);
            int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
            job.body(job.count * thread / threads, job.count * (thread + 1) / threads);
        },
        &job, unsigned(threads), 0);
}
