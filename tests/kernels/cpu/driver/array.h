// Arrays in memory of exactly their size, which kernels read and write.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "random.h"

enum class Type { BYTE, BF16, FP32 };

inline Type float_type(bool half) { return half ? Type::BF16 : Type::FP32; }

// `value`, rounded to bf16.
double rounded_to_bf16(double value);

// An array begins where only its elements are aligned, or at the beginning of its memory, so that a sanitizer sees
// accesses on either side. Without a sanitizer, bytes around it show what was written there; they are NaN, which a
// result shows if they were read.
class Array {
    Type type;
    std::vector<int> shape;
    int64_t elements;
    unsigned char *memory = nullptr, *first = nullptr;
    size_t before = 0, after = 0;
    std::vector<unsigned char> kept;

   public:
    const char* const name;

    Array(Random& random, const char* name, Type type, std::vector<int> shape, bool present);
    Array(const Array&) = delete;
    ~Array();

    // Null for an array that is not present.
    void* data() { return first; }
    float* floats() { return static_cast<float*>(data()); }
    bool is_half() const { return type == Type::BF16; }
    bool present() const { return first; }
    int64_t count() const { return elements; }
    size_t bytes() const;
    double operator[](int64_t i) const;
    void set(int64_t i, double value);

    // Keeps the present bytes as those to which `restore` returns.
    void keep();
    void restore();
    bool is_as_kept() const;
    bool has_the_bytes_of(const std::vector<unsigned char>& other) const;
    std::vector<unsigned char> copy() const;
    bool is_surrounded() const;
    // The place of element i, as in "y[0, 2, 3, 1]".
    std::string place(int64_t i) const;
};
