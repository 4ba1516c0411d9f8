// Loops over several threads.
//
// On Linux these are the threads of the OpenMP runtime that PyTorch has loaded. The runtime's own functions are called
// instead of `#pragma omp`: then nothing is linked, so that no second runtime is loaded, and every compiler makes the
// same calls. On other systems, and with -DFCG_OWN_THREADS, they are threads of this library (threads.cpp).
#pragma once
#include <cstdint>

#if defined(__linux__) && !defined(FCG_OWN_THREADS)
#define FCG_OPENMP 1
extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num();
int omp_get_num_threads();
}
#else
#define FCG_OPENMP 0
#endif

// A call of body(data, thread, threads) on each thread.
struct Task {
    void (*body)(void* data, int thread, int threads);
    void* data;
};

#if !FCG_OPENMP
// Runs the task on `threads` threads, of which the caller is number 0, or on fewer; returns when all have finished.
void run_on_threads(const Task& task, int threads);
#else
inline void run_on_threads(const Task& task, int threads) {
    GOMP_parallel(
        [](void* data) {
            const Task& task = *static_cast<const Task*>(data);
            task.body(task.data, omp_get_thread_num(), omp_get_num_threads());
        },
        const_cast<Task*>(&task), unsigned(threads), 0);
}
#endif

// Calls body(begin, end) for consecutive parts of [0, count), one for each thread.
template <class Body>
inline void parallel_for(int64_t count, int threads, const Body& body) {
    if (threads > count) threads = int(count);
    if (threads <= 1) {
        if (count > 0) body(int64_t(0), count);
        return;
    }
    struct Loop {
        const Body& body;
        int64_t count;
    } loop{body, count};
    Task task{[](void* data, int thread, int threads) {
                  const Loop& loop = *static_cast<const Loop*>(data);
                  loop.body(loop.count * thread / threads, loop.count * (thread + 1) / threads);
              },
              &loop};
    run_on_threads(task, threads);
}
