// A random case of a test: its arrays, the calls of the kernel on several threads, and what is checked afterwards.
#pragma once
#include <functional>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>

#include "array.h"
#include "bounds.h"

// The message is one line.
struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Case {
    std::ostringstream arguments;
    std::vector<std::unique_ptr<Array>> inputs, outputs;
    std::string calling;
    uint64_t seen = 0xcbf29ce484222325u;

    Array& add(std::vector<std::unique_ptr<Array>>& to, const char* name, Type type, std::vector<int> shape,
               bool present);
    void check_memory() const;

   public:
    Random random;
    // The functions that were called.
    std::set<std::string> called;

    Case(uint64_t seed, uint64_t number) : random(seed, number) {}

    // Records an argument for messages, and returns it.
    template <class Value>
    Value argument(const char* name, Value value) {
        arguments << ' ' << name << '=' << value;
        return value;
    }
    std::string text() const { return calling + ":" + arguments.str(); }
    // A hash of all results.
    uint64_t digest() const { return seen; }

    // An array that the kernel must not change; to be filled.
    Array& input(const char* name, Type type, std::vector<int> shape, bool present = true);
    // An array that the kernel writes. It contains NaN, or what it is filled with, before each call.
    Array& output(const char* name, Type type, std::vector<int> shape, bool present = true);

    // Calls kernel(threads), which must return 0, with 1, 2 and 3 threads. All must write the same bits.
    void run(const char* function, const std::function<int(int)>& kernel);
    // Records a call that returns a size.
    int64_t size(const char* function, int64_t size);
    void check(const Array& array, const Expected& expected) const;
    [[noreturn]] void fail(const std::string& problem) const;
};
