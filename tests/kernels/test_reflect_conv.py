"""Compare reflect_conv2d in every form, and all its gradients, with plain PyTorch in float64.

Inputs have various memory layouts. Real sizes are tested on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.kernels import reflect_conv2d, reflect_conv2d_ref
from fastcyclegan.kernels.reflect_conv import reflect_conv
from fastcyclegan.testing import assert_parity, assert_same_bits, captured_graph, tf32
from tests.kernels.reflect_convs import CASES, SMALL, Case, check, operands, ours, results

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


pytestmark = pytest.mark.usefixtures("no_tf32")


@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.why}-{d}") for c in CASES for d in c.dtypes]
)
def test_equals_float64(case: Case, dtype: torch.dtype, device: str) -> None:
    check(case, device, dtype)


def test_reference_matches_torchs_layers() -> None:
    """``reflect_conv2d_ref`` agrees with torch's layers, and its gradient with one that was derived by hand.

    The latter is for a 1x1 kernel of ones and padding 1, where each pixel is read once for every place that
    reflects it.
    """
    x = torch.randn(2, 3, 5, 6)
    conv = torch.nn.Conv2d(3, 4, 3)
    torch.testing.assert_close(
        reflect_conv2d_ref(x, conv.weight, conv.bias, padding=1), conv(torch.nn.ReflectionPad2d(1)(x))
    )
    pixels = torch.zeros(1, 1, 3, 4, requires_grad=True)
    reflect_conv2d_ref(pixels, torch.ones(1, 1, 1, 1), padding=1).sum().backward()
    rows, columns = torch.tensor([1.0, 3, 1]), torch.tensor([1.0, 2, 2, 1])
    assert torch.equal(pixels.grad[0, 0], rows[:, None] * columns)


@pytest.mark.parametrize("kind", ["planes", "cut out", "expanded gradient"])
def test_any_layout(kind: str, device: str) -> None:
    case = Case("", (2, 12, 5, 4), 9)
    x, weights, _, dy = operands(case, device)
    expected = results(ours(case), x, weights, [], dy)
    if kind == "planes":
        x, dy = x.contiguous(), dy.contiguous()
    elif kind == "cut out":
        x = torch.cat([x, x], 3).contiguous()[..., :4]
    else:
        dy = torch.ones(1, device=device).expand(dy.shape)
        expected = results(ours(case), x, weights, [], torch.ones_like(dy))
    got = results(ours(case), x, weights, [], dy)
    for name, result in got.items():
        assert torch.equal(result, expected[name]), name


def test_same_bits_twice_and_alone(device: str) -> None:
    """A repeated call gives the same bits, and an image's results do not depend on other images."""
    case = SMALL
    tensors = operands(case, device)
    first, second = (results(ours(case), *tensors) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    x, weights, biases, _ = tensors
    x = x.clone(memory_format=torch.channels_last)
    x[0] = float("nan")
    assert torch.equal(reflect_conv2d(x, weights, biases, padding=1, impl="triton")[1:], first["y"][1:])


def test_no_images(device: str) -> None:
    for out in (3, 9):
        x = torch.zeros(0, 12, 4, 4, device=device, requires_grad=True)
        weight = torch.ones(out, 12, 3, 3, device=device, requires_grad=True)
        y = reflect_conv2d(
            x, [weight, weight.detach()], [torch.ones(out, device=device)] * 2, padding=1, impl="triton"
        )
        y.sum().backward()
        assert y.shape == (0, out, 4, 4)
        assert not weight.grad.any()


def test_a_list_of_none_biases_means_no_bias(device: str) -> None:
    x, weights, _, _ = operands(SMALL, device)
    y = reflect_conv2d(x, weights, [None, None], padding=1, impl="triton")
    assert torch.equal(y, reflect_conv2d(x, weights, padding=1, impl="triton"))


def test_fp32_weights_are_rounded_for_16_bit_images(device: str) -> None:
    """With 16-bit images, fp32 weights are rounded: results and input gradients are those of rounded weights.

    The gradients of the weights themselves are in fp32.
    """
    x, weights, biases, dy = operands(SMALL, device)
    x, dy = x.to(BF16), dy.to(BF16)
    wide = results(ours(SMALL), x, weights, biases, dy)
    narrow = results(ours(SMALL), x, [w.to(BF16) for w in weights], [b.to(BF16) for b in biases], dy)
    assert torch.equal(wide["dx"], narrow["dx"])
    assert wide["dweight[1]"].dtype == wide["dbias[0]"].dtype == FP32
    torch.testing.assert_close(wide["dweight[1]"].to(BF16), narrow["dweight[1]"])


# --- With the norm before it and the tanh after it ----------------------------------------------------------


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(
    ("channels", "out", "kernel", "tanh"), [(20, 3, 7, True), (6, 3, 3, True), (12, 16, 3, False)]
)
def test_norm_before_and_tanh_after(
    channels: int, out: int, kernel: int, tanh: bool, dtype: torch.dtype, recompute: bool, device: str
) -> None:
    """A convolution with the norm before it, and with or without tanh after it, obeys the parity rule.

    The cases are the generator's last layer, a layer with few input channels, and upsampling by resize.
    """
    torch.manual_seed(0)
    case = Case("", (2, channels, 6, 9), out, kernel, kernel // 2, bias=True)
    x, weights, biases, dy = operands(case, device, dtype)
    weights = [0.1 * w for w in weights]
    dy = dy.float() if tanh else dy

    def run(x: Tensor, weights: Any, biases: Any) -> Tensor:
        return reflect_conv(
            x, weights, biases, padding=case.padding, norm=True, act="relu", tanh=tanh, recompute=recompute
        )

    def plain(x: Tensor, weights: Any, biases: Any) -> Tensor:
        y = reflect_conv2d_ref(F.relu(F.instance_norm(x.contiguous())), weights, biases, padding=case.padding)
        return torch.tanh(y.float() if y.dtype == BF16 else y) if tanh else y

    got, baseline = (results(f, x, weights, biases, dy) for f in (run, plain))
    truth = results(
        plain, x.double(), [w.double() for w in weights], [b.double() for b in biases], dy.double()
    )
    assert got["y"].dtype == (FP32 if tanh else dtype)
    for name, result in got.items():
        assert_parity(name, result, baseline[name], truth[name], dtype)


def test_tanh_near_zero_and_far_from_it(device: str) -> None:
    x = (
        torch.cat([torch.logspace(-6, 1, 40), -torch.logspace(-6, 1, 40), torch.zeros(1)])
        .view(1, 1, 1, 81)
        .expand(1, 16, 1, 81)
    )
    weight = torch.zeros(1, 16, 1, 1, device=device)
    weight[:, 0] = 1
    y = reflect_conv(x.to(device), [weight], [], padding=0, tanh=True)
    torch.testing.assert_close(y[0, 0, 0].cpu(), torch.tanh(x[0, 0, 0].double()).float(), rtol=1e-6, atol=0)


# --- On a GPU -----------------------------------------------------------------------------------------------

REAL = [
    Case("residual", (1, 256, 64, 64), 256),
    Case("residual, two", (2, 256, 64, 64), 256, P=2),
    Case("residual, four", (4, 256, 64, 64), 256),
    Case("residual, sixteen", (16, 256, 64, 64), 256),
    Case("residual of 1024 x 1024 images", (1, 256, 256, 256), 256),
    Case("first", (2, 3, 256, 256), 64, 7, 3, bias=True),
    Case("last", (2, 64, 256, 256), 3, 7, 3, bias=True),
    Case("first and last of 1024 x 1024 images", (1, 64, 1024, 1024), 3, 7, 3, bias=True),
    Case("an odd size", (1, 256, 61, 53), 256, bias=True),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("case", REAL, ids=lambda c: c.why)
def test_real_shapes(case: Case, dtype: torch.dtype) -> None:
    with tf32(True):
        check(case, "cuda", dtype)


@pytest.mark.gpu
def test_ieee_products_on_a_gpu() -> None:
    check(REAL[0], "cuda", FP32)
    check(REAL[6], "cuda", FP32)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [REAL[1], REAL[5], REAL[6]], ids=lambda c: c.why)
def test_graph_replayed_twice_with_new_data(case: Case) -> None:
    x, weights, _, dy = operands(case, "cuda", BF16)
    leaves = [t.requires_grad_() for t in (x, *weights)]

    def step() -> tuple[Tensor, ...]:
        y = reflect_conv2d(leaves[0], leaves[1:], padding=case.padding, impl="triton")
        return y, *torch.autograd.grad(y, leaves, dy)

    graph, captured = captured_graph(step)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for got, wanted in zip(captured, step(), strict=True):
            assert_same_bits("replayed", got, wanted)


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    """Results are right for an image so large that offsets exceed 32 bits.

    The last lines of the result are compared with those computed from the image's last lines alone. Lines
    next to the border that these get are left out.
    """
    torch.manual_seed(0)
    x = torch.randn(1, 64, 5900, 5900, device="cuda", dtype=BF16).contiguous(
        memory_format=torch.channels_last
    )
    for out in (64, 3):
        weight = torch.randn(out, 64, 3, 3, device="cuda", dtype=BF16)
        y = reflect_conv2d(x, weight, padding=1, impl="triton")[:, :, -8:]
        torch.testing.assert_close(
            y,
            reflect_conv2d(x[:, :, -16:], weight, padding=1, impl="triton")[:, :, -8:],
            rtol=2**-7,
            atol=2**-5,
        )
