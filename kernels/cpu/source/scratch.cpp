#include <cstdlib>

#include "vectors.h"

thread_local Scratch scratch, scratch_for_weights;

float* Scratch::floats(size_t count) {
    size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
    if (bytes > capacity) {
        free(memory);
        memory = aligned_alloc(64, bytes);
        capacity = memory ? bytes : 0;
    }
    return static_cast<float*>(memory);
}
