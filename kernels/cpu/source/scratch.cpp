#include <cstdlib>

#include <sys/mman.h>

#include "vectors.h"

thread_local Scratch scratch, scratch_for_call;

float* Scratch::floats(size_t count) {
    // Planes of transforms are written side by side, which takes many small pages at a time.
    constexpr size_t HUGE_PAGE = size_t(2) << 20;
    size_t bytes = count * sizeof(float), unit = bytes < HUGE_PAGE ? 64 : HUGE_PAGE;
    bytes = (bytes + unit - 1) / unit * unit;
    if (bytes > capacity) {
        free(memory);
        memory = aligned_alloc(unit, bytes);
        capacity = memory ? bytes : 0;
        // If the system refuses, the pages are small.
        if (memory && unit == HUGE_PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
    }
    return static_cast<float*>(memory);
}
