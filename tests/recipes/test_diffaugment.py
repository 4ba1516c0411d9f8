"""Compare the batched augmentation with the reference image by image: outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan import reference as ref
from fastcyclegan.recipes.diffaugment import DiffAugment, augment
from fastcyclegan.testing import assert_parity, assert_same_bits

SETS = [("color",), ("translation",), ("cutout",), ("color", "cutout"), ref.AUGMENTATIONS]
# (C, H, W): colour, gray, not square with odd sides, and the smallest sides that can be moved at all.
SIZES = [(3, 16, 16), (1, 16, 24), (3, 13, 30), (2, 4, 5)]


def images(batch: int, size: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    noise = torch.randn(batch, *size, generator=generator, dtype=torch.float64)
    return noise.to(dtype, memory_format=torch.channels_last).requires_grad_()


def numbers(*shape: int) -> Tensor:
    """Return random numbers that include both ends of their range."""
    u = torch.rand(7, *shape, generator=torch.Generator().manual_seed(sum(shape)))
    u.view(7, -1)[:, 0] = 0
    u.view(7, -1)[:, -1] = 1  # numbers just below 1 are rounded to it
    return u


def with_gradient(run: Callable[[], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    y = run()
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(y, x, upstream.to(y))
    return y, gradient


def assert_equals_reference(run: Any, names: tuple[str, ...], size: tuple[int, int, int]) -> None:
    x, u = images(3, size), numbers(3)
    ours = with_gradient(lambda: run(x, u, names), x)
    expected = with_gradient(lambda: ref.augment(x, names, u), x)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("names", SETS, ids=" ".join)
def test_equals_the_reference(names: tuple[str, ...], size: tuple[int, int, int]) -> None:
    assert_equals_reference(augment, names, size)


@pytest.mark.parametrize("size", [(3, 16, 16), (1, 13, 30)], ids=str)
def test_compiled_equals_the_reference(size: tuple[int, int, int]) -> None:
    run = torch.compile(augment, backend="aot_eager", fullgraph=True, dynamic=False)
    assert_equals_reference(run, ref.AUGMENTATIONS, size)


@pytest.mark.parametrize("names", SETS, ids=" ".join)
def test_passes_the_parity_rule_in_fp32(names: tuple[str, ...]) -> None:
    """The images are computed in fp32 inside autocast, too."""
    u, exact = numbers(4), images(4, (3, 32, 20))
    x = exact.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        ours = with_gradient(lambda: augment(x, u, names), x)
    plain = with_gradient(lambda: ref.augment(x, names, u), x)
    exact = x.detach().double().requires_grad_()
    truth = with_gradient(lambda: ref.augment(exact, names, u), exact)
    for name, *results in zip(("output", "gradient"), ours, plain, truth, strict=True):
        assert results[0].dtype == torch.float32
        assert_parity(name, *results, torch.float32)


def test_16_bit_images_are_augmented_in_fp32() -> None:
    x, u = images(2, (3, 16, 16)).detach().bfloat16(), numbers(2)
    assert_same_bits("output", augment(x, u, ref.AUGMENTATIONS), augment(x.float(), u, ref.AUGMENTATIONS))


def test_can_be_differentiated_twice() -> None:
    x, u = images(2, (2, 4, 5)), numbers(2)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, u, ref.AUGMENTATIONS).square(), x)


@pytest.mark.parametrize(
    "sizes",
    [[(3, 16, 16)] * 3, [(3, 16, 16), (1, 16, 16), (3, 12, 20)]],
    ids=["equal sizes", "different sizes"],
)
def test_several_batches_at_once(sizes: list[tuple[int, int, int]]) -> None:
    batches, u = [images(2, size) for size in sizes], numbers(3, 2)
    augmented = DiffAugment(ref.AUGMENTATIONS)(batches, u)
    for n, (ours, x) in enumerate(zip(augmented, batches, strict=True)):
        torch.testing.assert_close(ours, ref.augment(x, ref.AUGMENTATIONS, u[:, n]), rtol=1e-12, atol=1e-13)


def test_without_augmentations_images_pass_through() -> None:
    batches = [images(1, (3, 16, 16))]
    assert DiffAugment(())(batches, None)[0] is batches[0]
