#include "array.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t MARGIN = 0;
#else
constexpr size_t MARGIN = 64;
#endif
// Four of these bytes are NaN in fp32, and two in bf16.
constexpr unsigned char FILLING = 0xff;

size_t size_of(Type type) { return type == Type::BYTE ? 1 : type == Type::BF16 ? 2 : 4; }

uint16_t to_bf16(double value) {
    float number = float(rounded_to_bf16(value));
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    return uint16_t(bits >> 16);
}

double from_bf16(uint16_t half) {
    uint32_t bits = uint32_t(half) << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

}  // namespace

double rounded_to_bf16(double value) {
    if (!std::isfinite(value) || value == 0) return value;
    int exponent;
    std::frexp(value, &exponent);
    // Eight digits, ties to even.
    double unit = std::ldexp(1, exponent - 8);
    return std::nearbyint(value / unit) * unit;
}

Array::Array(Random& random, const char* name, Type type, std::vector<int> shape, bool present)
    : type(type), shape(shape), elements(1), name(name) {
    for (int side : shape) elements *= side;
    bool hostile = random.chance(75);
    if (!present) return;
    before = MARGIN + (hostile ? size_of(type) : 0);
    after = MARGIN;
    memory = static_cast<unsigned char*>(malloc(before + bytes() + after));
    if (!memory) throw std::bad_alloc();
    first = memory + before;
    memset(memory, FILLING, before + bytes() + after);
}

Array::~Array() { free(memory); }

size_t Array::bytes() const { return size_t(elements) * size_of(type); }

double Array::operator[](int64_t i) const {
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

void Array::set(int64_t i, double value) {
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

void Array::keep() { kept = copy(); }

void Array::restore() {
    if (first) memcpy(first, kept.data(), bytes());
}

bool Array::is_as_kept() const { return has_the_bytes_of(kept); }

bool Array::has_the_bytes_of(const std::vector<unsigned char>& other) const {
    return !first || !memcmp(first, other.data(), bytes());
}

std::vector<unsigned char> Array::copy() const {
    return first ? std::vector<unsigned char>(first, first + bytes()) : std::vector<unsigned char>();
}

bool Array::is_surrounded() const {
    for (size_t i = 0; first && i < before; i++)
        if (memory[i] != FILLING) return false;
    for (size_t i = 0; first && i < after; i++)
        if (first[bytes() + i] != FILLING) return false;
    return true;
}

std::string Array::place(int64_t i) const {
    std::string text;
    for (size_t k = shape.size(); k-- > 0; i /= shape[k])
        text = std::to_string(i % shape[k]) + (text.empty() ? "" : ", ") + text;
    return std::string(name) + "[" + text + "]";
}
