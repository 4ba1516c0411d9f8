"""Weight gradients are added in place only if autograd would have added the same values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcyclegan.kernels import accumulating, reflect_conv2d
from fastcyclegan.kernels._weight_gradients import each_weight
from tests.kernels.reflect_convs import CASES, Case, operands, ours, results

pytestmark = pytest.mark.usefixtures("no_tf32")


def test_weights_with_hooks_are_left_to_autograd(device: str) -> None:
    x, weights, _, dy = operands(CASES[0], device)
    once = results(ours(CASES[0]), x, weights, [], dy)["dweight[0]"]
    weight = weights[0].requires_grad_()
    seen: list[Tensor] = []
    weight.register_hook(lambda g: seen.append(g.clone()))
    with accumulating():
        for _ in range(2):
            reflect_conv2d(x, weight, padding=1, impl="triton").backward(dy)
    assert len(seen) == 2
    torch.testing.assert_close(weight.grad, 2 * once)


def test_only_the_inputs_of_a_backward_are_added_to(device: str) -> None:
    """Inside ``accumulating``, backward(inputs=) and autograd.grad give the right results.

    They do not change the gradients of other weights.
    """
    case = Case("", (1, 9, 2, 3), 9)
    x, weights, _, dy = operands(case, device)
    x = x.requires_grad_()
    weight = weights[0].requires_grad_()
    other = torch.randn_like(weights[0]).requires_grad_()

    def run() -> Tensor:
        y = reflect_conv2d(x, weight, padding=1, impl="triton")
        return reflect_conv2d(y, other, padding=1, impl="triton")

    run().backward(dy)
    once = {t: t.grad.clone() for t in (weight, other)}
    with accumulating():
        run().backward(dy, inputs=[weight])
        gradient = torch.autograd.grad(run(), [other], dy)[0]
    torch.testing.assert_close(weight.grad, 2 * once[weight])
    assert torch.equal(other.grad, once[other])
    torch.testing.assert_close(gradient, once[other])


def test_one_share_is_the_image_itself() -> None:
    """Otherwise its gradient would be copied."""
    x, weight = torch.randn(2, 3, 4, 4), torch.randn(1)
    ((share, same),) = each_weight(x, [weight])
    assert share is x
    assert same is weight
