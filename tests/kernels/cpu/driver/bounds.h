// Bounds of rounding errors, which follow from how many roundings a number goes through.
//
// Source: Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1. A term that goes through c
// operations in fp32 is multiplied by a factor between 1 - growth(c) and 1 + growth(c). So a sum of terms, of which
// none goes through more than c operations, is off by at most growth(c) times the sum of their absolute values. A
// fused multiply-add rounds once where a product and a sum round twice; the bounds count twice.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

// Half the distance between 1 and the next number.
constexpr double ROUNDING = 1.0 / (1 << 24);

// One more rounding is counted for the expected values, which are computed in double.
inline double growth(double roundings) {
    double c = (roundings + 1) * ROUNDING;
    return c / (1 - c);
}

// The same beside a number that underflows: then each operation is off by at most half of the least number.
inline double underflow(double roundings) { return roundings * std::ldexp(1, -149); }

inline int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The additions through which a term goes if vectors of `lanes` sums are added up in pairs.
inline int pairs(int lanes) {
    int steps = 0;
    for (; lanes > 1; lanes /= 2) steps++;
    return steps;
}

// What an array must contain: each value within its error. A value that is not finite stands for any of that kind. The
// error of a result in bf16 is that before it is rounded.
struct Expected {
    std::vector<double> value, error;
    explicit Expected(int64_t count) : value(size_t(count), 0), error(size_t(count), 0) {}
    void set(int64_t i, double v, double e) {
        value[size_t(i)] = v;
        error[size_t(i)] = e;
    }
};
