"""Compare the batched losses with the reference's losses one by one: values and gradients in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.recipes.losses import gan_losses, l1_losses
from fastcyclegan.reference import GAN_MODES, gan_loss
from fastcyclegan.testing import assert_parity


def values(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [(3 * torch.randn(shape, dtype=dtype)).requires_grad_() for shape in shapes]


def assert_same(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    assert actual.shape == expected.shape == (len(inputs),)
    weights = torch.randn(len(inputs), dtype=actual.dtype)  # so that each loss counts separately
    grads = [torch.autograd.grad((loss * weights).sum(), inputs) for loss in (actual, expected)]
    for a, b in ((actual, expected), *zip(*grads, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "shapes",
    [[(2, 1, 4, 4)] * 3, [(1, 1, 4, 4), (1, 1, 2, 6), (1, 1, 4, 4)]],
    ids=["equal sizes", "different sizes"],
)
@pytest.mark.parametrize("mode", GAN_MODES)
def test_adversarial_losses(mode: str, shapes: list[tuple[int, ...]], compiled: bool) -> None:
    logits, real = values(shapes), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    run: Any = gan_losses
    if compiled:
        run = torch.compile(gan_losses, backend="aot_eager", fullgraph=True)
    expected = torch.stack([gan_loss(x, bool(flag), mode) for x, flag in zip(logits, real, strict=True)])
    assert_same(run(logits, real, mode), expected, logits)


@pytest.mark.parametrize(
    "shapes",
    [[(2, 3, 4, 4)] * 3, [(1, 3, 4, 4), (1, 3, 2, 6), (1, 1, 4, 4)]],
    ids=["equal sizes", "different sizes"],
)
def test_distances(shapes: list[tuple[int, ...]]) -> None:
    results = values(shapes)
    targets = [torch.randn_like(x) for x in results]
    weights = torch.tensor([10.0, 0.5, 3.0], dtype=torch.float64)
    for run in (l1_losses, torch.compile(l1_losses, backend="aot_eager", fullgraph=True)):
        expected = torch.stack(
            [w * F.l1_loss(x, y) for w, x, y in zip(weights, results, targets, strict=True)]
        )
        assert_same(run(results, targets, weights), expected, results)


def test_16_bit_inputs_are_summed_in_fp32() -> None:
    logits = [x.detach().bfloat16().requires_grad_() for x in values([(1, 1, 40, 40)] * 2)]
    losses = gan_losses(logits, torch.tensor([1.0, 0.0]), "lsgan")
    assert losses.dtype == torch.float32
    one_by_one = [
        torch.stack([gan_loss(x.to(dtype), flag) for x, flag in zip(logits, (True, False), strict=True)])
        for dtype in (torch.float32, torch.float64)
    ]
    assert_parity("losses", losses, *one_by_one, torch.float32)
