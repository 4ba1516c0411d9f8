#include "shapes.h"

int channels(Random& random, int most) {
    int count = random.between(1, 8);
    if (random.chance(60)) count = random.between(1, 5) * 16 + random.between(-3, 3);
    if (random.chance(20)) count = random.between(1, 70);
    return count < most ? count : random.between(1, most);
}

namespace {

int side(Random& random, int first) {
    if (random.chance(10)) return first;
    if (random.chance(15)) return first + random.between(0, 150);
    return first + random.between(0, 12);
}

}  // namespace

Size image_size(Case& test, int64_t numbers, int first, int most_channels) {
    Random& random = test.random;
    Size s{random.between(1, 3), side(random, first), side(random, first), channels(random, most_channels)};
    // Keep what fits, and cut one of the others.
    while (s.count() > numbers) {
        int* cut[] = {&s.N, &s.H, &s.W, &s.C};
        int* chosen = cut[random.between(0, 3)];
        int least = chosen == &s.H || chosen == &s.W ? first : 1;
        *chosen = *chosen * 3 / 4 > least ? *chosen * 3 / 4 : least;
    }
    test.argument("N", s.N);
    test.argument("H", s.H);
    test.argument("W", s.W);
    test.argument("C", s.C);
    return s;
}

int border_of(Case& test, const Size& s, bool reflect) {
    int most = 4;
    if (reflect && s.H - 1 < most) most = s.H - 1;
    if (reflect && s.W - 1 < most) most = s.W - 1;
    return test.random.between(0, most);
}

void fill(Array& array, Random& random) {
    if (!array.present()) return;
    int kind = random.between(0, 3);
    double far = random.scaled(8);
    for (int64_t i = 0; i < array.count(); i++) {
        double value = kind == 0 ? random.scaled(12) : random.unit();
        if (kind == 1) value += far;
        if (random.chance(3)) value = random.chance(50) ? 0.0 : -0.0;
        array.set(i, value);
    }
}
