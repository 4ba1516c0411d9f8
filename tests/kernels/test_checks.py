"""Operators raise the right errors for invalid arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastcyclegan.kernels import instance_norm, reflect_conv2d
from fastcyclegan.kernels.zero_conv import zero_conv

FP16 = torch.float16
X, W = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)


# --- instance_norm ------------------------------------------------------------------------------------------

NORM_CASES = [
    (
        (torch.zeros(3, 256),),
        {},
        ValueError,
        r"instance_norm: x must be \[N, C, L\], \[N, C, H, W\] or .*, got shape \(3, 256\)",
    ),
    (
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64),),
        {},
        TypeError,
        "x must be floating point, got torch.int64",
    ),
    ((X,), {"act": "gelu"}, ValueError, "act must be one of none, relu, leaky_relu, got 'gelu'"),
    ((X,), {"impl": "cuda"}, ValueError, "impl must be auto, cpp, triton or reference, got 'cuda'"),
    ((X, torch.zeros(4)), {}, ValueError, r"weight must be \[3\], one number per channel of x, got \[4\]"),
    ((X, None, torch.zeros(3, dtype=FP16)), {}, TypeError, "bias must be torch.float32 .* got torch.float16"),
    ((X, torch.zeros(3, device="meta")), {}, ValueError, "weight must be on the device of x, cpu, got meta"),
    (
        (X,),
        {"residual": X[:1]},
        ValueError,
        r"residual must have the shape of x, \(2, 3, 4, 4\), got \(1, 3, 4, 4\)",
    ),
    (
        (X,),
        {"residual": X.half()},
        TypeError,
        "residual must have the dtype of x, torch.float32, got torch.float16",
    ),
    ((X,), {"residual": X.to("meta")}, ValueError, "residual must be on the device of x, cpu, got meta"),
    (
        (X.double(),),
        {"impl": "triton"},
        TypeError,
        "takes float32, bfloat16 or float16, got torch.float64; use impl='reference'",
    ),
    ((X.to("meta"),), {"impl": "triton"}, ValueError, "impl='triton' needs an NVIDIA GPU, got meta"),
    (
        (torch.zeros(2, 0, 4, 4),),
        {},
        ValueError,
        r"x must have channels and pixels, got shape \(2, 0, 4, 4\)",
    ),
    (
        (torch.zeros(2, 3, 0, 4),),
        {},
        ValueError,
        r"x must have channels and pixels, got shape \(2, 3, 0, 4\)",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"), NORM_CASES, ids=[case[3][:40] for case in NORM_CASES]
)
def test_instance_norm_reports_bad_input(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if error is TypeError and options.get("impl") == "triton" and torch.cuda.is_available():
        # On a GPU the kernels reject CPU tensors of any dtype, so test with GPU tensors.
        arguments = tuple(t.cuda() for t in arguments)
    with pytest.raises(error, match=message):
        instance_norm(*arguments, **options)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_single_pixel_raises_torchs_error(impl: str) -> None:
    x = torch.zeros(1, 3, 1, 1)
    with pytest.raises(ValueError) as expected:
        F.instance_norm(x)
    with pytest.raises(ValueError) as ours:
        instance_norm(x, impl=impl)
    assert str(ours.value) == str(expected.value)


# --- reflect_conv2d -----------------------------------------------------------------------------------------

REFLECT_CONV_CASES = [
    (("x", W), {}, TypeError, "reflect_conv2d: x must be a tensor, got str"),
    ((X.int(), W.int()), {}, TypeError, "x must be floating point, got torch.int32"),
    ((X, None), {}, TypeError, "weight must be a tensor or a list of tensors, got NoneType"),
    ((X, [W, None]), {}, TypeError, "weight must be a tensor or a list of tensors, got NoneType"),
    ((X, W, 0.0), {}, TypeError, "bias must be a tensor or a list of tensors, got float"),
    (
        (X, [W, W], [torch.zeros(5), None]),
        {},
        TypeError,
        "bias must be a tensor or a list of tensors, got NoneType",
    ),
    ((X, W), {"padding": 1.0}, TypeError, "padding must be an integer, got float"),
    ((X, W), {"padding": (1, 1)}, TypeError, "padding must be an integer, got tuple"),
    ((X, W[:0]), {}, ValueError, r"weight must have at least one output channel, got \[0, 3, 3, 3\]"),
    (
        (torch.zeros(3, 4, 4), W),
        {},
        ValueError,
        r"reflect_conv2d: x must be \[N, C, H, W\], got shape \(3, 4, 4\)",
    ),
    (
        (X, W),
        {"padding": 4},
        ValueError,
        r"less than the height and width of x, got padding 4 and x of shape \(2, 3, 4, 4\)",
    ),
    ((X, W), {"padding": -1}, ValueError, "padding must be at least 0 .* of x, got padding -1 and"),
    (
        (X, torch.zeros(5, 3, 7, 7)),
        {},
        ValueError,
        "x must be at least as large as the kernel, got size 4 with padding 1 and kernel size 7",
    ),
    ((X, torch.zeros(5, 3, 4, 4)), {}, ValueError, "weight must have an odd square kernel, got 4 x 4"),
    ((X, torch.zeros(5, 3, 3, 5)), {}, ValueError, "weight must have an odd square kernel, got 3 x 5"),
    (
        (X, torch.zeros(5, 4, 3, 3)),
        {},
        ValueError,
        r"weight must be \[O, 3, k, k\] for x with 3 channels, got \[5, 4, 3, 3\]",
    ),
    ((X, []), {}, ValueError, "weight must be a weight or a non-empty list of weights, got an empty list"),
    ((X, [W, W, W]), {}, ValueError, "with 3 weights, the batch size must be a multiple of 3, got 2"),
    (
        (X, [W, torch.zeros(6, 3, 3, 3)]),
        {},
        ValueError,
        r"the same shape, got \[5, 3, 3, 3\] and \[6, 3, 3, 3\]",
    ),
    ((X, W.half()), {}, TypeError, "weight must be torch.float32 .* got torch.float16"),
    (
        (X.half(), [W, W.half()]),
        {},
        TypeError,
        "all tensors in weight must have the same dtype, got torch.float32 and torch.float16",
    ),
    ((X, W.to("meta")), {}, ValueError, "weight must be on the device of x, cpu, got meta"),
    (
        (X, W, torch.zeros(4)),
        {},
        ValueError,
        r"bias must be \[5\], one number per output channel, got \[4\]",
    ),
    ((X, [W, W], [torch.zeros(5)]), {}, ValueError, "bias must have as many tensors as weight, 2, got 1"),
    ((X, W, torch.zeros(5, dtype=FP16)), {}, TypeError, "bias must be torch.float32 .* got torch.float16"),
    ((X, W, torch.zeros(5, device="meta")), {}, ValueError, "bias must be on the device of x, cpu, got meta"),
    ((X, W), {"impl": "cuda"}, ValueError, "impl must be auto, cpp, triton or reference, got 'cuda'"),
    (
        (X.double(), W.double()),
        {"impl": "triton"},
        TypeError,
        "takes float32, bfloat16 or float16, got torch.float64",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    REFLECT_CONV_CASES,
    ids=[case[3][:40] for case in REFLECT_CONV_CASES],
)
def test_reflect_conv2d_reports_bad_input(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if error is TypeError and options.get("impl") == "triton" and torch.cuda.is_available():
        # On a GPU the kernels reject CPU tensors of any dtype, so test with GPU tensors.
        arguments = tuple(t.cuda() for t in arguments)
    with pytest.raises(error, match=message):
        reflect_conv2d(*arguments, **{"padding": 1, **options})


# --- zero_conv ----------------------------------------------------------------------------------------------

ZERO_CONV_CASES = [
    (("x", [W]), {}, TypeError, "zero_conv: x must be a tensor, got str"),
    ((X.int(), [W.int()]), {}, TypeError, "zero_conv: x must be floating point, got torch.int32"),
    ((X.double(), [W.double()]), {}, TypeError, "x must be float32, bfloat16 or float16, got torch.float64"),
    ((X[0], [W]), {}, ValueError, r"x must be \[N, C, H, W\], got shape \(3, 4, 4\)"),
    ((X, []), {}, ValueError, "a multiple of the number of weights, got a batch of 2 and 0 weights"),
    ((X, [W] * 3), {}, ValueError, "a multiple of the number of weights, got a batch of 2 and 3 weights"),
    (
        (X, [W, W[:4]]),
        {},
        ValueError,
        r"all tensors in weight must have the same shape, got \[5, 3, 3, 3\] and \[4, 3, 3, 3\]",
    ),
    ((X, [W.half()]), {}, TypeError, "weight must be torch.float32 .* got torch.float16"),
    (
        (X.half(), [W, W.half()]),
        {},
        TypeError,
        "all tensors in weight must have the same dtype, got torch.float32 and torch.float16",
    ),
    ((X, [W.to("meta")]), {}, ValueError, "weight must be on the device of x, cpu, got meta"),
    (
        (X, [W[:, :2]]),
        {},
        ValueError,
        r"weight must be \[O, 3, k, k\] .* got \[5, 2, 3, 3\], stride 2, padding 1 and",
    ),
    ((X, [W]), {"transposed": True}, ValueError, r"weight must be \[3, O, k, k\] .* got \[5, 3, 3, 3\]"),
    ((X, [torch.zeros(5, 3, 8, 8)]), {}, ValueError, r"k at most 7, .* got \[5, 3, 8, 8\]"),
    ((X, [W]), {"stride": 3}, ValueError, r"a stride of 1 or 2, .* got .*, stride 3, padding 1 and"),
    ((X, [W]), {"padding": 3}, ValueError, r"a padding below k .* got .*, stride 2, padding 3 and"),
    ((X, [W]), {"output_padding": 1}, ValueError, r"below the stride, got .*, stride 2, .* output_padding 1"),
    (
        (X, [torch.zeros(5, 3, 7, 7)]),
        {},
        ValueError,
        r"x must be large enough for the kernel, got shape \(2, 3, 4, 4\)",
    ),
    ((X, [W], [torch.zeros(4)]), {}, ValueError, r"one tensor .* \(1 in total\), got 1 of shape \[4\]"),
    ((X, [W, W], [torch.zeros(5)]), {}, ValueError, r"one tensor .* \(2 in total\), got 1 of shape \[5\]"),
    (
        (X, [W], [torch.zeros(5, dtype=FP16)]),
        {},
        TypeError,
        "bias must be torch.float32 .* got torch.float16",
    ),
    (
        (X, [W]),
        {"norm": True, "act": "gelu"},
        ValueError,
        "act must be one of none, relu, leaky_relu [(]without norm: none[)], got 'gelu'",
    ),
    ((X, [W]), {"act": "relu"}, ValueError, "act must be one of .* [(]without norm: none[)], got 'relu'"),
    (
        (X[:, :, :1, :1], [W]),
        {"norm": True},
        ValueError,
        "Expected more than 1 spatial element when training",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    ZERO_CONV_CASES,
    ids=[case[3][:40] for case in ZERO_CONV_CASES],
)
def test_zero_conv_reports_bad_input(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    positional = arguments if len(arguments) == 3 else (*arguments, [])
    with pytest.raises(error, match=message):
        zero_conv(*positional, **{"stride": 2, "padding": 1, **options})


def test_operators_check_their_own_arguments() -> None:
    """Networks and saved traces call the operators directly, and kernels read x by the weight's shape."""
    ops, x = torch.ops.fastcyclegan, torch.zeros(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    weight, norm = torch.zeros(5, 3, 3, 3), (False, 1e-5, "none", 0.0)
    conv = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    for inputs, w in ((x, weight), (x.to("meta"), weight.to("meta"))):
        with pytest.raises(ValueError, match=r"weight must be \[O, 4, k, k\] for x with 4 channels"):
            ops.reflect_conv_fwd(inputs, None, None, [w], [], *norm, 1, False, True, True)
        with pytest.raises(ValueError, match=r"zero_conv: weight must be \[O, 4, k, k\]"):
            ops.zero_conv_fwd(inputs, [w], [], 1, 1, False, 0, *norm, True, True)
        with pytest.raises(ValueError, match=r"weight1 must be \[O, 4, k, k\]"):
            ops.residual_block_fwd(inputs, [w], [w], 1e-5, True)
        with pytest.raises(ValueError, match=r"weight must be \[4\], one number per channel"):
            ops.instance_norm_fwd(inputs, w[0, :, 0, 0], None, None, 1e-5, "none", 0.0, True)
        with pytest.raises(ValueError, match="border must be less than the height and width"):
            ops.norm_conv_fwd(inputs, None, None, w, None, *norm, 8, True, *conv, True)
