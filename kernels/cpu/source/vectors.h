// Vectors of fp32 numbers in the compiler's own vector types, so that one source serves every instruction set.
//
// Images are [N, H, W, C] in memory (channels_last), in fp32 or in bf16, which is stored as its upper 16 bits.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// How many numbers a vector has, and how many vector registers there are.
#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16;
#else
// NEON on arm64.
constexpr int LANES = 4, REGISTERS = 32;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t bf16;

// Subtracting zero changes nothing, so it leaves no instruction; adding zero would change -0.
static inline Floats splat(float value) { return value - Floats{}; }

static inline Floats widen(Halves halves) {
    Words words = __builtin_convertvector(halves, Words) << 16;
    Floats result;
    memcpy(&result, &words, sizeof result);
    return result;
}

// Rounds to nearest, ties to even, as PyTorch does; NaN stays NaN.
static inline Halves narrow(Floats value) {
    Words words;
    memcpy(&words, &value, sizeof words);
    Words rounded = (words + 0x7fffu + ((words >> 16) & 1u)) >> 16;
    rounded = value == value ? rounded : Words{} + 0x7fc0u;
    return __builtin_convertvector(rounded, Halves);
}

static inline Floats load(const float* p) {
    Floats result;
    memcpy(&result, p, sizeof result);
    return result;
}

static inline Floats load(const bf16* p) {
    Halves halves;
    memcpy(&halves, p, sizeof halves);
    return widen(halves);
}

static inline void store(float* p, Floats value) { memcpy(p, &value, sizeof value); }

static inline void store(bf16* p, Floats value) {
    Halves halves = narrow(value);
    memcpy(p, &halves, sizeof halves);
}

// Loads the first `count` lanes and sets the others to 0. Nothing beyond them is read.
template <class T>
static inline Floats load(const T* p, int count) {
    if (count >= LANES) return load(p);
    T values[LANES] = {};
    memcpy(values, p, count * sizeof(T));
    return load(values);
}

// Stores the first `count` lanes. Nothing beyond them is written.
template <class T>
static inline void store(T* p, Floats value, int count) {
    if (count >= LANES) return store(p, value);
    T values[LANES];
    store(values, value);
    memcpy(p, values, count * sizeof(T));
}

static inline float sum(Floats value) {
    // In pairs, in a fixed order.
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) value[i] += value[i + half];
    return value[0];
}

static inline int round_up(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }
