#include "scratch.h"

#include <cstdlib>

#if defined(_WIN32)
#include <malloc.h>
#include <windows.h>
#elif defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

struct Scratches {
    Scratch own, for_call;
};

#if defined(_WIN32)
// MinGW frees a thread's variables before it calls their destructors, so the system keeps a pointer to them.
void NTAPI remove(void* scratches) { delete static_cast<Scratches*>(scratches); }

Scratches& of_this_thread() {
    static const DWORD place = FlsAlloc(remove);
    void* scratches = FlsGetValue(place);
    if (!scratches) FlsSetValue(place, scratches = new Scratches);
    return *static_cast<Scratches*>(scratches);
}
#else
Scratches& of_this_thread() {
    static thread_local Scratches scratches;
    return scratches;
}
#endif

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

Scratch& scratch() { return of_this_thread().own; }
Scratch& scratch_for_call() { return of_this_thread().for_call; }

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
