// What convolutions by their definition have in common.
#pragma once
#include <cstddef>
#include <cstdint>

namespace direct {

// A convolution of images [N, H, W, C] to O channels with a k x k kernel. The images have their borders.
struct Shape {
    int N, H, W, C, O, k, stride;
    int rows() const { return (H - k) / stride + 1; }
    int columns() const { return (W - k) / stride + 1; }
    // Where the inputs of row `row` begin, if the rows of all images are counted.
    size_t line(int64_t row) const { return (size_t(row / rows()) * H + size_t(row % rows()) * stride) * W * C; }
};

}  // namespace direct
