// Memory that each thread keeps for itself between calls, because fresh pages cost more than the work on them.
#pragma once
#include <cstddef>

class Scratch {
    void* memory = nullptr;
    size_t capacity = 0;

   public:
    ~Scratch();
    // Returns `count` floats, aligned to 64 bytes, or a null pointer if there is no memory. Those of the last call are
    // lost.
    float* floats(size_t count);
};

// The calling thread's memory for what it alone reads.
Scratch& scratch();
// The calling thread's memory for what all threads of its current call read.
Scratch& scratch_for_call();
