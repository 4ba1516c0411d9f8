"""Compare instance_norm and all its gradients with float64, by the parity rule in fastcyclegan.testing.

On a machine without a GPU, the kernels run in Triton's interpreter, at sizes that need several tiles of
several blocks: blocks have 32 pixels and 16 channels, there are at most 4 tiles, and the one-launch kernels
support images of up to 64 pixels (128 for a plane).
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels import instance_norm, instance_norm_ref
from fastcyclegan.testing import assert_same_bits, captured_graph
from tests.kernels.norms import check, gradients, in_layout

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Case:
    why: str
    shape: tuple[int, ...]
    act: str = "relu"
    affine: str = ""  # "", "weight", "bias" or "both"
    residual: bool = False
    planes: bool = False
    dtypes: tuple[torch.dtype, ...] = (FP32,)


# Each case covers one path or one edge case; values between the edges are left out. Sizes are chosen for the
# interpreter's tiles.
CASES = [
    Case("one launch, channels not a power of two", (2, 5, 4, 4), dtypes=(FP32, FP16, BF16)),
    Case(
        "one launch, its largest image, more channels than a block", (1, 17, 8, 8), "leaky_relu", "both", True
    ),
    Case(
        "one pixel more than the one-launch kernels take",
        (1, 16, 13, 5),
        "leaky_relu",
        "both",
        True,
        dtypes=(FP32, FP16, BF16),
    ),
    Case("whole blocks and whole tiles", (1, 16, 16, 8), "none"),
    Case("one pixel and one channel more than a block", (1, 17, 1, 129), "relu", "weight"),
    Case("several tiles of several blocks, several images", (3, 20, 13, 11), "leaky_relu", "bias", True),
    Case("the fewest pixels that have a variance", (2, 3, 1, 2), "none", "both"),
    Case("one channel: both layouts are the same", (2, 1, 5, 20), "relu"),
    Case("planes, one launch", (2, 3, 10, 11), "leaky_relu", "both", True, True, (FP32, FP16)),
    Case("planes of several tiles", (2, 2, 17, 9), "relu", "both", True, True),
    Case("a signal, channels last", (2, 6, 77), "relu", "both"),
    Case("a signal, planes", (1, 3, 257), "leaky_relu", "weight", False, True),
    Case("a volume, channels last", (1, 4, 3, 5, 6), "leaky_relu", "both", True),
    Case("a volume, planes", (2, 3, 4, 3, 3), "none", "", True, True),
]


@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.why}-{d}") for c in CASES for d in c.dtypes]
)
def test_equals_float64(case: Case, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    x = in_layout(torch.randn(case.shape, device=device) * 2 + 3, case.planes).to(dtype)
    residual = (
        in_layout(torch.randn(case.shape, device=device), case.planes).to(dtype) if case.residual else None
    )
    weight = torch.randn(case.shape[1], device=device) if case.affine in ("weight", "both") else None
    bias = torch.randn(case.shape[1], device=device) if case.affine in ("bias", "both") else None
    check(x, weight, bias, residual, act=case.act, slope=0.1)


@pytest.mark.parametrize("size", [4, 13])
def test_no_images(size: int, device: str) -> None:
    """For an empty batch, the result is empty and the gradients are zero. torch's own instance norm fails."""
    x, weight = torch.zeros(0, 3, size, size, device=device), torch.ones(3, device=device)
    results = dict(gradients(lambda *a, **k: instance_norm(*a, impl="triton", **k), x, weight, weight, x, x))
    assert [results[name].shape for name in ("y", "dx", "dresidual")] == [x.shape] * 3
    assert not results["dweight"].any()
    assert not results["dbias"].any()


# The interpreter also casts the lanes past the end, which are not stored.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("dtype", [FP32, FP16])
def test_flat_images_become_exactly_zero(planes: bool, dtype: torch.dtype, device: str) -> None:
    """Images whose pixels are all equal are normalised to exactly 0.

    Their variance is 0, so a rounding error in the mean would be multiplied by 1 / sqrt(eps) = 316.
    """
    for size in (7, 13):
        x = in_layout(torch.full((1, 3, size, size), 1000.3, device=device), planes).to(dtype)
        assert not instance_norm(x, impl="triton").any()
        check(x)


@pytest.mark.parametrize("size", [7, 13])
def test_mean_of_a_thousand_deviations(size: int, device: str) -> None:
    """The variance is accurate even if the mean is a thousand standard deviations away from 0.

    Computed as E[x^2] - E[x]^2, it would be off by a quarter.
    """
    torch.manual_seed(0)
    check(in_layout(1000 + torch.randn(1, 5, size, size, device=device), False), act="relu")


def test_an_outlier_in_the_first_pixel(device: str) -> None:
    """Results are accurate even if the first pixel is far away from all others.

    If the sums were shifted by the first value, the small differences between the others would be lost.
    """
    torch.manual_seed(0)
    x = torch.randn(1, 4, 13, 11, device=device)
    x[:, :, 0, 0] = 1e5
    check(in_layout(x, False))


@pytest.mark.parametrize("kind", ["expanded", "planes", "cut out"])
def test_upstream_gradient_in_any_layout(kind: str, device: str) -> None:
    torch.manual_seed(0)
    x = in_layout(torch.randn(1, 5, 9, 11, device=device), False)
    dy = {
        "expanded": torch.randn(1, 5, 1, 1, device=device).expand(1, 5, 9, 11)
        * torch.ones((), device=device),
        "planes": torch.randn(1, 5, 9, 11, device=device),
        "cut out": torch.randn(2, 7, 12, 15, device=device)[:1, 1:6, 2:11, 3:14],
    }[kind]
    check(
        x,
        act="relu",
        dy=dy if kind != "expanded" else torch.randn(1, 5, 1, 1, device=device).expand(1, 5, 9, 11),
    )


def test_input_and_residual_in_any_layout(device: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 12, 15, device=device)[:, 1:6, 2:11, 3:14]
    residual = torch.randn(2, 5, 9, 11, device=device)
    y = instance_norm(x, residual=residual, impl="triton")
    torch.testing.assert_close(y, instance_norm_ref(x, residual=residual))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (3, 20, 13, 11)])
def test_same_bits_twice_and_alone(shape: tuple[int, ...], device: str) -> None:
    """A repeated call gives the same bits, and an image's results do not depend on the rest of the batch."""
    torch.manual_seed(0)
    x, dy = (in_layout(torch.randn(shape, device=device), False) for _ in range(2))

    def run(x: Tensor, dy: Tensor) -> list[Tensor]:
        return [
            t
            for _, t in gradients(
                lambda *a, **k: instance_norm(*a, impl="triton", **k), x, None, None, None, dy, act="relu"
            )
        ]

    for first, second, alone in zip(run(x, dy), run(x, dy), run(x[1:2], dy[1:2]), strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first[1:2], alone)


# --- On a GPU -----------------------------------------------------------------------------------------------

REAL = [(1, 64, 256, 256), (4, 256, 64, 64), (2, 512, 31, 31), (16, 128, 128, 128), (1, 32, 96, 96, 96)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("shape", REAL)
def test_real_shapes(shape: tuple[int, ...], planes: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, residual = (in_layout(torch.randn(shape, device="cuda") * 2 + 3, planes).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[1], device="cuda") for _ in range(2))
    check(x, weight, bias, residual, act="leaky_relu")


@pytest.mark.gpu
def test_a_large_image_has_the_same_bits_in_any_batch() -> None:
    test_same_bits_twice_and_alone((3, 64, 128, 96), "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("planes", [False, True])
def test_more_than_two_to_the_31_elements(planes: bool) -> None:
    """Results are right for an image so large that offsets exceed 32 bits.

    The last channels are checked, where an offset that wrapped around would cause wrong values.
    """
    torch.manual_seed(0)
    x = in_layout(torch.randn(1, 64, 5900, 5900, device="cuda", dtype=BF16), planes).requires_grad_()
    dy = torch.randn_like(x)
    y = instance_norm(x, act="relu", impl="triton")
    y.backward(dy)
    leaf = x.detach()[:, -4:].contiguous().float().requires_grad_()
    reference = instance_norm_ref(leaf, act="relu")
    reference.backward(dy[:, -4:].float())
    for ours, expected in ((y[:, -4:], reference), (x.grad[:, -4:], leaf.grad)):
        torch.testing.assert_close(ours.float(), expected, rtol=2**-7, atol=2**-7)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", REAL[1:3])
def test_graph_replayed_twice_with_new_data(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, device="cuda", dtype=BF16).to(memory_format=torch.channels_last).requires_grad_()
    dy = torch.randn_like(x)

    def step() -> tuple[Tensor, Tensor]:
        y = instance_norm(x, act="relu", impl="triton")
        return y, torch.autograd.grad(y, x, dy)[0]

    graph, captured = captured_graph(step)
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
            dy.copy_(torch.randn_like(dy))
        graph.replay()
        for got, wanted in zip(captured, step(), strict=True):
            assert_same_bits("replayed", got, wanted)
