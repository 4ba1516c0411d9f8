#include "case.h"

#include <cmath>
#include <cstdio>

namespace {

std::string text_of(double value) {
    char text[40];
    snprintf(text, sizeof text, "%.9g", value);
    return text;
}

// Half the distance between the numbers of bf16 around `size`, by which rounding to it can be off.
double half_unit_of_bf16(double size) {
    int exponent;
    std::frexp(size, &exponent);
    return std::ldexp(1, (exponent > -125 ? exponent : -125) - 9);
}

}  // namespace

Array& Case::add(std::vector<std::unique_ptr<Array>>& to, const char* name, Type type, std::vector<int> shape,
                 bool present) {
    to.push_back(std::make_unique<Array>(random, name, type, shape, present));
    return *to.back();
}

Array& Case::input(const char* name, Type type, std::vector<int> shape, bool present) {
    if (!present) arguments << ' ' << name << "=null";
    if (present && type == Type::BF16) arguments << ' ' << name << ":bf16";
    return add(inputs, name, type, shape, present);
}

Array& Case::output(const char* name, Type type, std::vector<int> shape, bool present) {
    if (present && type == Type::BF16) arguments << ' ' << name << ":bf16";
    return add(outputs, name, type, shape, present);
}

void Case::run(const char* function, const std::function<int(int)>& kernel) {
    calling = function;
    called.insert(function);
    for (auto& array : inputs) array->keep();
    for (auto& array : outputs) array->keep();
    std::vector<std::vector<unsigned char>> results;
    for (int threads = 1; threads <= 3; threads++) {
        for (auto& array : outputs) array->restore();
        int returned = kernel(threads);
        if (returned) fail("returned " + std::to_string(returned) + " with " + std::to_string(threads) + " threads");
        check_memory();
        for (size_t i = 0; i < outputs.size(); i++)
            if (threads == 1)
                results.push_back(outputs[i]->copy());
            else if (!outputs[i]->has_the_bytes_of(results[i]))
                fail(std::string(outputs[i]->name) + " has other bits with " + std::to_string(threads) + " threads");
    }
    for (auto& result : results)
        for (unsigned char byte : result) seen = (seen ^ byte) * 0x100000001b3u;
}

void Case::check_memory() const {
    for (auto& array : inputs)
        if (!array->is_as_kept()) fail(std::string("the input ") + array->name + " was changed");
    for (auto* arrays : {&inputs, &outputs})
        for (auto& array : *arrays)
            if (!array->is_surrounded()) fail(std::string("wrote beyond ") + array->name);
}

int64_t Case::size(const char* function, int64_t size) {
    called.insert(function);
    return size;
}

void Case::check(const Array& array, const Expected& expected) const {
    for (int64_t i = 0; i < array.count(); i++) {
        double ours = array[i], value = expected.value[size_t(i)], error = expected.error[size_t(i)];
        if (array.is_half() && error > 0) error += half_unit_of_bf16(std::fabs(value) + error);
        if (array.is_half() && error == 0) value = rounded_to_bf16(value);
        // Nothing is known where the bound itself is not a number.
        bool right = std::isfinite(value) ? std::fabs(ours - value) <= error || std::isnan(error) : !std::isfinite(ours);
        if (!right)
            fail(array.place(i) + " is " + text_of(ours) + ", expected " + text_of(value) + " within " + text_of(error));
    }
}

void Case::fail(const std::string& problem) const { throw Failure(text() + ": " + problem); }
