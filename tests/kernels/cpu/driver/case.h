// A random case of a test: its arrays, the calls of the kernel on several threads, and what is checked afterwards.
#pragma once
#include <cmath>
#include <cstdio>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>

#include "array.h"
#include "bounds.h"

// A number for messages.
inline std::string text_of(double value) {
    char text[40];
    snprintf(text, sizeof text, "%.9g", value);
    return text;
}

// Half the distance between the numbers of bf16 around `size`, by which rounding to it can be off.
inline double half_unit_of_bf16(double size) {
    int exponent;
    std::frexp(size, &exponent);
    return std::ldexp(1, (exponent > -125 ? exponent : -125) - 9);
}

// The message is one line.
struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Case {
    std::string arguments, calling;
    std::vector<std::unique_ptr<Array>> inputs, outputs;
    // The bytes of the outputs with one thread.
    std::vector<std::vector<unsigned char>> results;
    uint64_t seen = 0xcbf29ce484222325u;

    Array& add(std::vector<std::unique_ptr<Array>>& to, const char* name, Type type, std::vector<int> shape,
               bool present);
    void begin(const char* function);
    // Checks what a call on `threads` threads has left, against that with one thread.
    void compare(int threads);
    void check_memory() const;
    static std::string on(int threads);

   public:
    Random random;
    // The functions that were called.
    std::set<std::string> called;

    Case(uint64_t seed, uint64_t number) : random(seed, number) {}

    // Records an argument for messages, and returns it.
    template <class Value>
    Value argument(const char* name, Value value) {
        arguments += std::string(" ") + name + "=" + text_of(double(value));
        return value;
    }
    std::string text() const { return calling + ":" + arguments; }
    // A hash of all results.
    uint64_t digest() const { return seen; }

    // An array that the kernel must not change; to be filled.
    Array& input(const char* name, Type type, std::vector<int> shape, bool present = true);
    // An array that the kernel writes. It contains NaN, or what it is filled with, before each call.
    Array& output(const char* name, Type type, std::vector<int> shape, bool present = true);

    // Calls kernel(threads), which must return 0, with 1, 2 and 3 threads. All must write the same bits.
    template <class Kernel>
    void run(const char* function, const Kernel& kernel) {
        begin(function);
        for (int threads = 1; threads <= 3; threads++) {
            for (auto& array : outputs) array->restore();
            int returned = kernel(threads);
            if (returned) fail("returned " + std::to_string(returned) + on(threads));
            compare(threads);
        }
    }
    // Records a call that returns a size.
    int64_t size(const char* function, int64_t size);
    void check(const Array& array, const Expected& expected) const;
    [[noreturn]] void fail(const std::string& problem) const;
};

inline Array& Case::add(std::vector<std::unique_ptr<Array>>& to, const char* name, Type type, std::vector<int> shape,
                        bool present) {
    to.push_back(std::make_unique<Array>(random, name, type, shape, present));
    return *to.back();
}

inline Array& Case::input(const char* name, Type type, std::vector<int> shape, bool present) {
    if (!present) arguments += std::string(" ") + name + "=null";
    if (present && type == Type::BF16) arguments += std::string(" ") + name + ":bf16";
    return add(inputs, name, type, shape, present);
}

inline Array& Case::output(const char* name, Type type, std::vector<int> shape, bool present) {
    if (present && type == Type::BF16) arguments += std::string(" ") + name + ":bf16";
    return add(outputs, name, type, shape, present);
}

inline void Case::begin(const char* function) {
    calling = function;
    called.insert(function);
    results.clear();
    for (auto* arrays : {&inputs, &outputs})
        for (auto& array : *arrays) array->keep();
}

inline void Case::compare(int threads) {
    check_memory();
    for (size_t i = 0; i < outputs.size(); i++)
        if (threads == 1)
            results.push_back(outputs[i]->copy());
        else if (!outputs[i]->has_the_bytes_of(results[i]))
            fail(std::string(outputs[i]->name) + " has other bits" + on(threads));
    for (size_t i = 0; threads == 1 && i < results.size(); i++)
        for (unsigned char byte : results[i]) seen = (seen ^ byte) * 0x100000001b3u;
}

inline std::string Case::on(int threads) { return " with " + std::to_string(threads) + " threads"; }

inline void Case::check_memory() const {
    for (auto& array : inputs)
        if (!array->is_as_kept()) fail(std::string("the input ") + array->name + " was changed");
    for (auto* arrays : {&inputs, &outputs})
        for (auto& array : *arrays)
            if (!array->is_surrounded()) fail(std::string("wrote beyond ") + array->name);
}

inline int64_t Case::size(const char* function, int64_t size) {
    called.insert(function);
    return size;
}

inline void Case::check(const Array& array, const Expected& expected) const {
    for (int64_t i = 0; i < array.count(); i++) {
        double ours = array[i], value = expected.value[size_t(i)], error = expected.error[size_t(i)];
        if (array.is_half() && error > 0) error += half_unit_of_bf16(std::fabs(value) + error);
        if (array.is_half() && error == 0) value = rounded_to_bf16(value);
        // Nothing is known where the bound itself is not a number.
        bool within = std::fabs(ours - value) <= error || std::isnan(error);
        if (std::isfinite(value) ? within : !std::isfinite(ours)) continue;
        fail(array.place(i) + " is " + text_of(ours) + ", expected " + text_of(value) + " within " + text_of(error));
    }
}

inline void Case::fail(const std::string& problem) const { throw Failure(text() + ": " + problem); }
