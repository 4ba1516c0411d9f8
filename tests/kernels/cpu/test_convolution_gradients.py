"""Compare the gradients of convolutions with float64 by the parity rule, for each C++ kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels.cpu import functions
from fastcyclegan.testing import assert_parity, assert_same_bits
from tests.kernels.cpu.cases import CONVOLUTIONS, ConvCase
from tests.kernels.cpu.processor import BF16, FP32, guarded, images, on_every_number_of_threads, padded


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _operands(case: ConvCase, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image, a weight in fp32, and the gradient of their convolution."""
    (N, C, *sides), k = case.shape, case.kernel
    x = guarded(images(*case.shape, dtype=dtype))
    weight = torch.randn(case.outputs, C, k, k) / k
    H, W = ((side + 2 * case.border - k) // case.stride + 1 for side in sides)
    return x, weight, guarded(images(N, case.outputs, H, W, dtype=dtype))


def _by_pytorch(case: ConvCase, which: int, x: Tensor, weight: Tensor, g: Tensor) -> Tensor:
    """Return the gradient of the image with its reflected border (0), or of the weight (1)."""
    zeros = 0 if case.reflect else case.border
    x = padded(x, case.border - zeros, True)
    sizes = ([case.stride] * 2, [zeros] * 2, [1, 1], False, [0, 0], 1)
    mask = [which == 0, which == 1, False]
    gradient: Tensor = torch.ops.aten.convolution_backward(g, x, weight, None, *sizes, mask)[which]
    return gradient


def _weight_options(case: ConvCase) -> dict[str, Any]:
    return {"stride": case.stride, "padding": case.border, "reflect": case.reflect}


# As ``convolution.chosen`` does: PyTorch computes the gradients of the others.
INPUT = [c for c in CONVOLUTIONS if c.stride == 1 and (c.reflect or c.border < c.kernel)]
WEIGHT = [c for c in CONVOLUTIONS if c.stride == 1 or c.kind == "wide"]


def _label(case: ConvCase) -> str:
    return f"{case.kind}: {case.why}"


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("case", INPUT, ids=_label)
def test_gradients_of_images_equal_float64(case: ConvCase, dtype: torch.dtype) -> None:
    x, weight, g = _operands(case, dtype)
    border, zeros = (case.border, 0) if case.reflect else (0, case.border)
    size = [side + 2 * border for side in x.shape[2:]]
    ours = on_every_number_of_threads(
        lambda: functions.input_gradient(case.kind, g, weight, size, padding=zeros)
    )
    rounded = weight.to(dtype)
    pytorch = _by_pytorch(case, 0, x, rounded, g)
    truth = _by_pytorch(case, 0, x.double(), rounded.double(), g.double())
    assert_parity("dx", ours, pytorch, truth, dtype)
    assert ours.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("case", WEIGHT, ids=_label)
def test_gradients_of_weights_equal_float64(case: ConvCase, dtype: torch.dtype) -> None:
    """They are fp32 sums for bf16 images too."""
    x, weight, g = _operands(case, dtype)
    options = _weight_options(case)
    ours = on_every_number_of_threads(
        lambda: functions.weight_gradient(case.kind, g, x, case.kernel, **options)
    )
    pytorch = _by_pytorch(case, 1, x.float(), weight, g.float())
    truth = _by_pytorch(case, 1, x.double(), weight.double(), g.double())
    assert_parity("dweight", ours, pytorch, truth, FP32)
    assert ours.dtype == FP32
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("case", WEIGHT, ids=_label)
def test_gradients_of_weights_are_added(case: ConvCase, dtype: torch.dtype) -> None:
    """Nothing around the sum is written, and each number has the bits of PyTorch's addition."""
    x, weight, g = _operands(case, dtype)
    alone = functions.weight_gradient(case.kind, g, x, case.kernel, **_weight_options(case))
    before = torch.randn(weight.shape)

    def run() -> Tensor:
        store = torch.full((weight.numel() + 64,), 7.0)
        inner = store[32:-32].view(*weight.movedim(1, -1).shape).movedim(-1, 1).copy_(before)
        options = _weight_options(case)
        assert functions.weight_gradient(case.kind, g, x, case.kernel, **options, into=inner) is inner
        assert (store[:32] == 7).all()
        assert (store[-32:] == 7).all()
        return inner

    assert_same_bits("sum", on_every_number_of_threads(run), before + alone)


@pytest.mark.parametrize("layout", ["first", "gaps"])
@pytest.mark.parametrize("kind", ["winograd", "wide", "few"])
def test_operands_in_any_layout(kind: str, layout: str) -> None:
    x, weight, g = images(2, 4, 7, 5), torch.randn(4, 4, 3, 3), images(2, 4, 7, 5)
    dx = functions.input_gradient(kind, g, weight, (7, 5), padding=1)
    dweight = functions.weight_gradient(kind, g, x, 3, padding=1)

    def moved(t: Tensor) -> Tensor:
        return images(*t.shape, layout=layout).copy_(t)

    for w in (images(4, 4, 3, 3).copy_(weight), images(4, 4, 3, 3, layout="gaps").copy_(weight)):
        assert_same_bits("dx", functions.input_gradient(kind, moved(g), w, (7, 5), padding=1), dx)
    assert_same_bits("dweight", functions.weight_gradient(kind, moved(g), moved(x), 3, padding=1), dweight)


@pytest.mark.parametrize("kind", ["winograd", "wide", "few"])
def test_gradients_of_images_do_not_depend_on_the_batch(kind: str) -> None:
    g, weight = images(5, 4, 9, 7), torch.randn(4, 4, 3, 3)
    together = functions.input_gradient(kind, g, weight, (9, 7), padding=1)
    for n in range(5):
        alone = functions.input_gradient(kind, g[n : n + 1], weight, (9, 7), padding=1)
        assert_same_bits("dx", alone, together[n : n + 1])
