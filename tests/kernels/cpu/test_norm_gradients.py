"""Compare the gradients of norms and borders with float64 by the parity rule, for every number of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels import instance_norm_ref
from fastcyclegan.kernels._norm import Norm
from fastcyclegan.kernels.cpu import functions
from fastcyclegan.testing import assert_parity, assert_same_bits
from tests.kernels.cpu.cases import NORMS, NormCase
from tests.kernels.cpu.processor import BF16, FP32, guarded, images, on_every_number_of_threads, padded
from tests.kernels.norms import torch_instance_norm


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _gradients(run: Any, case: NormCase, g: Tensor, x: Tensor, *affine: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of x, the weight and the bias by autograd, for a norm computed by ``run``."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *affine)]
    y = run(*leaves, eps=1e-5, act=case.act, slope=0.1, residual=None)
    return torch.autograd.grad(padded(y, case.border, True), leaves, g)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("case", NORMS, ids=lambda case: case.why)
def test_gradients_equal_float64(case: NormCase, dtype: torch.dtype) -> None:
    """The sums over an image are those of the weight and bias; a norm without them has the same sums."""
    x = images(*case.shape, dtype=dtype, layout="last" if case.border else case.layout) * 2 + 3
    C = case.shape[1]
    weight, bias = (torch.randn(C), torch.randn(C)) if case.affine else (torch.ones(C), torch.zeros(C))
    norm = Norm(weight, bias, 1e-5, case.act, 0.1) if case.affine else Norm(act=case.act, slope=0.1)
    y, mean, rstd = functions.norm(x, norm, border=case.border)
    g = images(*y.shape, dtype=dtype)

    def run() -> tuple[Tensor, ...]:
        folded = g.clone()
        if case.border:
            functions.fold_(folded, case.border)
        dx, total = functions.norm_backward(folded, x, norm, mean, rstd, case.border)
        return dx, *total

    dx, sums, products = on_every_number_of_threads(run)
    narrow = (g, x, weight.to(dtype), bias.to(dtype))
    pytorch = _gradients(torch_instance_norm, case, *narrow)
    truth = _gradients(instance_norm_ref, case, *(t.double() for t in (g, x, weight, bias)))
    ours = (dx, products.sum(0), sums.sum(0))
    for name, *results in zip(("dx", "dweight", "dbias"), ours, pytorch, truth, strict=True):
        assert_parity(name, *results, dtype)
    assert dx.dtype == dtype
    assert dx.stride() == x.stride()


@pytest.mark.parametrize("layout", ["last", "first"])
def test_the_gradient_may_have_another_layout(layout: str) -> None:
    x = images(2, 5, 4, 6, layout=layout)
    _, mean, rstd = functions.norm(x, Norm())
    operands = (x, Norm(), mean, rstd)
    g = images(2, 5, 4, 6, layout=layout)
    expected, _ = functions.norm_backward(g, *operands)
    for other in (g.contiguous(), g.contiguous(memory_format=torch.channels_last), torch.stack([g, g])[1]):
        assert_same_bits("dx", functions.norm_backward(other, *operands)[0], expected)


@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_flat_images_have_a_finite_gradient(layout: str, dtype: torch.dtype) -> None:
    """Where all pixels are equal, 1 / sigma is 1 / sqrt(eps), and only the mean of g is subtracted."""
    x = torch.full_like(images(2, 5, 7, 7, dtype=dtype, layout=layout), 1000.3)
    _, mean, rstd = functions.norm(x, Norm())
    g = images(2, 5, 7, 7, dtype=dtype, layout=layout)
    dx, _ = functions.norm_backward(g, x, Norm(), mean, rstd)
    exact = (g.double() - g.double().mean((2, 3), keepdim=True)) * 1e-5**-0.5
    assert_parity("dx", dx, exact.to(dtype), exact, dtype)


@pytest.mark.parametrize("layout", ["last", "first"])
def test_nan_reaches_its_channel_and_no_other(layout: str) -> None:
    x, g = images(2, 18, 5, 5, layout=layout), images(2, 18, 5, 5, layout=layout)
    _, mean, rstd = functions.norm(x, Norm())
    g[0, 3, 2, 2] = float("nan")
    dx, total = functions.norm_backward(g, x, Norm(), mean, rstd)
    expected = torch.zeros(2, 18, dtype=torch.bool)
    expected[0, 3] = True
    assert torch.equal(dx.isnan().all(3).all(2), expected)
    assert torch.equal(dx.isnan().any(3).any(2), expected)
    assert torch.equal(total.isnan().all(0), expected)


def test_each_image_is_computed_by_itself() -> None:
    x, g = images(5, 4, 9, 7), images(5, 4, 9, 7)
    _, mean, rstd = functions.norm(x, Norm(act="relu"))
    together = functions.norm_backward(g, x, Norm(act="relu"), mean, rstd)
    for n in range(5):
        one = slice(n, n + 1)
        alone = functions.norm_backward(g[one], x[one], Norm(act="relu"), mean[one], rstd[one])
        assert_same_bits("dx", alone[0], together[0][one])
        assert_same_bits("total", alone[1], together[1][:, one])


@pytest.mark.parametrize("act", ["none", "relu", "leaky_relu"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_a_norm_is_computed_again_with_the_same_bits(act: str, dtype: torch.dtype) -> None:
    x = images(2, 37, 7, 9, dtype=dtype)
    norm = Norm(torch.randn(37), torch.randn(37), 1e-5, act, 0.1)
    y, mean, rstd = functions.norm(x, norm)
    again = on_every_number_of_threads(lambda: functions.norm_again(x, norm, mean, rstd))
    assert_same_bits("y", again, y)


# --- Borders and sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("channels", [1, 5, 16, 37])
@pytest.mark.parametrize(
    ("border", "H", "W"),
    [
        # Both borders show the same pixels, up to the smallest image that can be reflected.
        (1, 2, 2),
        (1, 3, 2),
        (3, 4, 4),
        (3, 5, 6),
        (3, 4, 7),
        # Each pixel is shown by one border at most, and inner pixels by none.
        (1, 4, 9),
        (3, 8, 11),
    ],
)
def test_borders_are_folded(border: int, H: int, W: int, channels: int, dtype: torch.dtype) -> None:
    g = images(2, channels, H + 2 * border, W + 2 * border, dtype=dtype)
    ours = on_every_number_of_threads(lambda: functions.fold(guarded(g), border))

    def unpadded(g: Tensor) -> Tensor:
        x = torch.zeros(2, channels, H, W, dtype=g.dtype, requires_grad=True)
        return torch.autograd.grad(padded(x, border, True), x, g)[0]

    assert_parity("fold", ours, unpadded(g), unpadded(g.double()), dtype)
    assert ours.is_contiguous(memory_format=torch.channels_last)

    def in_place() -> Tensor:
        folded = guarded(g)
        functions.fold_(folded, border)
        return folded

    folded = on_every_number_of_threads(in_place)
    inner = (..., slice(border, border + H), slice(border, border + W))
    assert_same_bits("in place", folded[inner], ours)
    outside = torch.ones(H + 2 * border, W + 2 * border, dtype=torch.bool)
    outside[inner] = False
    assert_same_bits("the border", folded[..., outside], g[..., outside])


@pytest.mark.parametrize("layout", ["last", "first", "gaps"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 5, 9, 7), (1, 16, 1, 64), (3, 130, 5, 5), (3, 20, 37, 41), (0, 4, 3, 3)]
)
def test_pixels_are_summed(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    """The sums are fp32 in either dtype, over up to several thousand pixels."""
    g = images(*shape, dtype=dtype, layout=layout)
    ours = on_every_number_of_threads(lambda: functions.sum_pixels(g))
    assert_parity("sums", ours, g.float().sum((0, 2, 3)), g.double().sum((0, 2, 3)), FP32)


def test_empty_batches() -> None:
    x, norm = images(0, 5, 4, 6), Norm(act="relu")
    y, mean, rstd = functions.norm(x, norm, border=1)
    dx, total = functions.norm_backward(y, x, norm, mean, rstd, 1)
    assert dx.shape == x.shape
    assert total.shape == (2, 0, 5)
    assert functions.fold(y, 1).shape == functions.norm_again(x, norm, mean, rstd).shape == x.shape
    functions.fold_(y, 1)
