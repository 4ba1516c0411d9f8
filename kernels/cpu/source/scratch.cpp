#include "scratch.h"

#include <cstdlib>

#if defined(_WIN32)
#include <malloc.h>
#elif defined(__linux__)
#include <sys/mman.h>
#endif

thread_local Scratch scratch, scratch_for_call;

namespace {

// Planes of transforms are written side by side, which takes many small pages at a time.
constexpr size_t HUGE_PAGE = size_t(2) << 20;

#if defined(_WIN32)
void* allocate(size_t bytes, size_t unit) { return _aligned_malloc(bytes, unit); }
void release(void* memory) { _aligned_free(memory); }
#else
void* allocate(size_t bytes, size_t unit) {
    void* memory = nullptr;
    if (posix_memalign(&memory, unit, bytes)) return nullptr;
#if defined(__linux__)
    // If the system refuses, the pages are small.
    if (unit == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}
void release(void* memory) { free(memory); }
#endif

}  // namespace

Scratch::~Scratch() { release(memory); }

float* Scratch::floats(size_t count) {
    size_t bytes = count * sizeof(float), unit = bytes < HUGE_PAGE ? 64 : HUGE_PAGE;
    bytes = (bytes + unit - 1) / unit * unit;
    if (bytes > capacity) {
        release(memory);
        memory = allocate(bytes, unit);
        capacity = memory ? bytes : 0;
    }
    return static_cast<float*>(memory);
}
