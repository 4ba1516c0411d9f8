// Random numbers that are the same on every machine, which the distributions of <random> are not.
#pragma once
#include <cmath>
#include <cstdint>

class Random {
    uint64_t state;

   public:
    Random(uint64_t seed, uint64_t stream) : state(seed * 0x9e3779b97f4a7c15u ^ (stream + 1) * 0xd1b54a32d192ed03u) {}

    // Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014 (SplitMix64).
    uint64_t bits() {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }

    // An integer from `first` to `last`.
    int between(int first, int last) { return first + int(bits() % uint64_t(last - first + 1)); }
    bool chance(int percent) { return between(1, 100) <= percent; }
    // A number in [-1, 1).
    double unit() { return double(bits() >> 11) / double(uint64_t(1) << 52) - 1; }
    // A number in [-1, 1) times a power of two from 2^-range to 2^range.
    double scaled(int range) { return std::ldexp(unit(), between(-range, range)); }
};
