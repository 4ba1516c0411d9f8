// Arrays in memory of exactly their size, which kernels read and write.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "random.h"

enum class Type { BYTE, BF16, FP32 };

inline Type float_type(bool half) { return half ? Type::BF16 : Type::FP32; }

// `value`, rounded to bf16.
inline double rounded_to_bf16(double value) {
    if (!std::isfinite(value) || value == 0) return value;
    int exponent;
    std::frexp(value, &exponent);
    // Eight digits, ties to even.
    double unit = std::ldexp(1, exponent - 8);
    return std::nearbyint(value / unit) * unit;
}

inline size_t size_of(Type type) { return type == Type::BYTE ? 1 : type == Type::BF16 ? 2 : 4; }

inline uint16_t to_bf16(double value) {
    float number = float(rounded_to_bf16(value));
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return uint16_t(bits >> 16);
}

inline double from_bf16(uint16_t half) {
    uint32_t bits = uint32_t(half) << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

#if defined(__linux__)
// A function of AddressSanitizer, or null without it. This file is the same in all programs.
extern "C" void __asan_init() __attribute__((weak));
inline bool has_sanitizer() { return __asan_init != nullptr; }
#else
inline bool has_sanitizer() { return false; }
#endif

// The bytes before and after an array, unless a sanitizer guards its memory.
inline size_t margin() { return has_sanitizer() ? 0 : 64; }
// Four of these bytes are NaN in fp32, and two in bf16.
constexpr unsigned char FILLING = 0xff;

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
    // Sets a number of fp32 to a NaN whose bits must not be rounded like those of a number.
    void set_nan(int64_t i);

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

inline Array::Array(Random& random, const char* name, Type type, std::vector<int> shape, bool present)
    : type(type), shape(shape), elements(1), name(name) {
    for (int side : shape) elements *= side;
    bool hostile = random.chance(75);
    if (!present) return;
    before = margin() + (hostile ? size_of(type) : 0);
    after = margin();
    memory = static_cast<unsigned char*>(malloc(before + bytes() + after));
    if (!memory) throw std::bad_alloc();
    first = memory + before;
    memset(memory, FILLING, before + bytes() + after);
}

inline Array::~Array() { free(memory); }

inline size_t Array::bytes() const { return size_t(elements) * size_of(type); }

inline double Array::operator[](int64_t i) const {
    const unsigned char* at = first + size_t(i) * size_of(type);
    if (type == Type::BYTE) return *at;
    if (type == Type::BF16) {
        uint16_t half;
        memcpy(&half, at, sizeof half);
        return from_bf16(half);
    }
    float number;
    memcpy(&number, at, sizeof number);
    return number;
}

inline void Array::set(int64_t i, double value) {
    unsigned char* at = first + size_t(i) * size_of(type);
    uint16_t half = type == Type::BF16 ? to_bf16(value) : 0;
    float number = float(value);
    if (type == Type::BYTE)
        *at = static_cast<unsigned char>(value);
    else if (type == Type::BF16)
        memcpy(at, &half, sizeof half);
    else
        memcpy(at, &number, sizeof number);
}

inline void Array::set_nan(int64_t i) {
    constexpr uint32_t BITS = 0x7fffffffu;
    memcpy(first + size_t(i) * sizeof BITS, &BITS, sizeof BITS);
}

inline void Array::keep() { kept = copy(); }

inline void Array::restore() {
    if (first) memcpy(first, kept.data(), bytes());
}

inline bool Array::is_as_kept() const { return has_the_bytes_of(kept); }

inline bool Array::has_the_bytes_of(const std::vector<unsigned char>& other) const {
    return !first || !memcmp(first, other.data(), bytes());
}

inline std::vector<unsigned char> Array::copy() const {
    return first ? std::vector<unsigned char>(first, first + bytes()) : std::vector<unsigned char>();
}

inline bool Array::is_surrounded() const {
    for (size_t i = 0; first && i < before; i++)
        if (memory[i] != FILLING) return false;
    for (size_t i = 0; first && i < after; i++)
        if (first[bytes() + i] != FILLING) return false;
    return true;
}

inline std::string Array::place(int64_t i) const {
    std::string text;
    for (size_t k = shape.size(); k-- > 0; i /= shape[k])
        text = std::to_string(i % shape[k]) + (text.empty() ? "" : ", ") + text;
    return std::string(name) + "[" + text + "]";
}
