// The C interface of the library, which Python calls.
//
// Images are [N, H, W, C] in memory (channels_last), in fp32 or in bf16. Each function uses at most `threads` threads,
// and its result depends neither on their number nor, except for sums over a batch, on the other images. Those that
// return int return 1 if there is no memory for their own use, and 0 otherwise. No pointer may be null unless this is
// said, every size is at least 1, and a reflected border is smaller than the image.
#pragma once
#include <cstdint>

#if defined(_WIN32)
#define FCG_FUNCTION __declspec(dllexport)
#else
#define FCG_FUNCTION __attribute__((visibility("default")))
#endif

extern "C" {

// --- Norms and borders

// y [N, H + 2 border, W + 2 border, C] = act(IN(x) * scale + shift) + residual, with a reflected border; mean and rstd
// [N, C] are those of x, and are not computed if `again`. residual [N, H, W, C], scale and shift [C] can be null.
// half: x, residual and y are bf16 rather than fp32. activation: 0 none, 1 ReLU, 2 leaky ReLU with `slope`.
FCG_FUNCTION int fcg_norm(int half, const void* x, const void* residual, void* y, const float* scale,
                          const float* shift, float* mean, float* rstd, int again, int N, int H, int W, int C,
                          int border, int activation, float slope, float eps, int threads);

// The same without a border for x, residual and y [N, C, P], with the channels before the pixels.
FCG_FUNCTION int fcg_norm_lines(int half, const void* x, const void* residual, void* y, const float* scale,
                                const float* shift, float* mean, float* rstd, int N, int C, int64_t P, int activation,
                                float slope, float eps, int threads);

// mean and variance [C] of a region x [H, W, C] of an image, whose rows begin `row` numbers apart, at least W * C.
// half: x is bf16. The variance is biased: the mean of the squared differences.
FCG_FUNCTION int fcg_region_moments(int half, const void* x, int64_t row, float* mean, float* variance, int H, int W,
                                    int C, int threads);

// y [H, W, C] = act((x - mean) * rstd * scale + shift) + residual, with the bits of fcg_norm, for such a region x and a
// region residual or null, whose rows begin `residual_row` numbers apart. The other arguments are those of fcg_norm.
FCG_FUNCTION int fcg_norm_region(int half, const void* x, int64_t row, const void* residual, int64_t residual_row,
                                 void* y, const float* scale, const float* shift, const float* mean, const float* rstd,
                                 int H, int W, int C, int activation, float slope, int threads);

// dx [N, H, W, C] = the gradient of x, and total [2, N, C] = the sums of dz and of dz * xhat over an image, where
// z = xhat * scale + shift. g [N, H + 2 border, W + 2 border, C]: the gradient of the output, whose border has been
// folded. scale and shift can be null. half: g, x and dx are bf16.
FCG_FUNCTION int fcg_norm_backward(int half, const void* g, const void* x, const float* mean, const float* rstd,
                                   const float* scale, const float* shift, void* dx, float* total, int N, int H, int W,
                                   int C, int border, int activation, float slope, int threads);

// The same without a border for g, x and dx [N, C, P], with the channels before the pixels.
FCG_FUNCTION int fcg_norm_backward_lines(int half, const void* g, const void* x, const float* mean, const float* rstd,
                                         const float* scale, const float* shift, void* dx, float* total, int N, int C,
                                         int64_t P, int activation, float slope, int threads);

// y [N, H + 2p, W + 2p, C] = x with a border of p pixels, reflected or zero. half: x is bf16, and y too unless `wide`.
FCG_FUNCTION int fcg_pad(int half, int wide, const void* x, void* y, int N, int H, int W, int C, int p, int reflect,
                         int threads);

// Folds the reflected border of g [N, H + 2p, W + 2p, C] onto the pixels that it shows: to [N, H, W, C] = the gradient
// of the image, + added if that is not null. If `to` is null, `added` must be null too; then the pixels of g are changed,
// and its border is kept.
FCG_FUNCTION int fcg_fold(int half, const void* g, const void* added, void* to, int N, int H, int W, int C, int p,
                          int threads);

// to [C] = the sums over the P pixels of g [P, C], in bf16 if `half`.
FCG_FUNCTION int fcg_sum_pixels(int half, const void* g, float* to, int64_t P, int C, int threads);

// --- 3x3 convolutions with stride 1

// The number of floats that fcg_winograd_weight writes.
FCG_FUNCTION int64_t fcg_winograd_size(int O, int C);

// w [O, 3, 3, C] -> u, the weights as fcg_winograd reads them with form 0. half: they are rounded to bf16.
FCG_FUNCTION int fcg_winograd_weight(int half, const float* w, float* u, int O, int C, int threads);

// y [N, H + 2 pad - 2, W + 2 pad - 2, O] = the convolution of x [N, H, W, C], padded by reflection or by zeros,
// plus bias [O] or null. form 0: w is what fcg_winograd_weight made; 1: the weights [O, 3, 3, C]; 2: the weights
// [C, 3, 3, O] of the convolution whose gradient of the image this computes. half: x is bf16, and weights of the forms
// 1 and 2 are rounded; half_out: y is bf16, if x is.
FCG_FUNCTION int fcg_winograd(int half, int half_out, int form, const void* x, const float* w, const float* bias,
                              void* y, int N, int H, int W, int C, int O, int pad, int reflect, int threads);

// w [O, 3, 3, C] = the gradient of the weights, or is increased by it if `add`. g [N, H + 2 pad - 2, W + 2 pad - 2, O]
// is the gradient of the output, and x [N, H, W, C] the image, padded by reflection or by zeros. half: both are bf16.
FCG_FUNCTION int fcg_winograd_gradient(int half, const void* g, const void* x, float* w, int N, int H, int W, int C,
                                       int O, int pad, int reflect, int add, int threads);

// --- Convolutions from few channels ("wide") and to few channels ("few"), with k x k kernels

// The numbers of floats that fcg_wide_weight and fcg_few_weight write.
FCG_FUNCTION int64_t fcg_wide_size(int O, int C, int k);
FCG_FUNCTION int64_t fcg_few_size(int O, int C, int k);

// w [O, k, k, C] -> u, the weights as fcg_wide and fcg_few read them.
FCG_FUNCTION int fcg_wide_weight(const float* w, float* u, int O, int C, int k, int threads);
FCG_FUNCTION int fcg_few_weight(const float* w, float* u, int O, int C, int k, int threads);

// y [N, rows, columns, O] = the convolution of the padded image x [N, H, W, C] in fp32, plus bias [O] or null.
// half: y is bf16.
FCG_FUNCTION int fcg_wide(int half, const float* x, const float* u, const float* bias, void* y, int N, int H, int W,
                          int C, int O, int k, int stride, int threads);

// The same for few outputs and many channels. half: x is bf16; half_out: y is bf16, if x is.
FCG_FUNCTION int fcg_few(int half, int half_out, const void* x, const float* u, const float* bias, void* y, int N,
                         int H, int W, int C, int O, int k, int stride, int threads);

// w [O, k, k, C] = the gradient of the weights of a convolution of the padded image x [N, XH, XW, C] in fp32, or is
// increased by it if `add`. g [N, H, W, O]: the gradient of the output, in bf16 if `half`.
FCG_FUNCTION int fcg_wide_gradient(int half, const float* x, const void* g, float* w, int N, int H, int W, int O,
                                   int XH, int XW, int C, int k, int stride, int add, int threads);

// The same for few outputs, with stride 1. g [N, H + k - 1, W + k - 1, O]: the gradient of the output in fp32, with
// k - 1 zeros on each side, so that GH and GW are the sides of g. x [N, H, W, C]: the padded image, in bf16 if `half`.
FCG_FUNCTION int fcg_few_gradient(int half, const float* g, const void* x, float* w, int N, int H, int W, int C,
                                  int GH, int GW, int O, int k, int stride, int add, int threads);

// ---

// Whether two blocks of memory are equal.
FCG_FUNCTION int fcg_equal(const char* a, const char* b, int64_t bytes, int threads);
}
