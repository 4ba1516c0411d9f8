// Reflected borders: which pixels they show.
#pragma once
#include <cstddef>
#include <cstring>

// The pixel of a line of `size` pixels that stands at position i of the line with its reflected border.
static inline int reflected(int i, int size) {
    if (i < 0) i = -i;
    if (i >= size) i = 2 * size - 2 - i;
    return i;
}

// Copies the pixels that the border of a finished row reflects. `row` is the first pixel inside the border.
template <class T>
inline void reflect_row(T* row, int W, int C, int border) {
    for (int k = 1; k <= border; k++) {
        memcpy(row - size_t(k) * C, row + size_t(k) * C, C * sizeof(T));
        memcpy(row + size_t(W - 1 + k) * C, row + size_t(W - 1 - k) * C, C * sizeof(T));
    }
}
