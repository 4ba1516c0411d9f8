"""Tests of zero_conv as a PyTorch operator: opcheck, torch.compile and double backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.kernels.zero_convs import DOWN, LAST, ROUTES, UP, Case, operands, ours, results

pytestmark = pytest.mark.usefixtures("no_tf32")


@pytest.mark.parametrize(
    ("case", "recompute"),
    [(case, True) for case in ROUTES] + [(UP, False)],
    ids=lambda v: getattr(v, "why", f"recompute={v}"),
)
def test_opcheck(case: Case, recompute: bool, device: str) -> None:
    x, weights, biases, dy = operands(case, device)
    conv, norm = (case.stride, case.padding, case.up is not None), (1e-5, case.act or "none", 0.1)
    leaves = [[t.requires_grad_() for t in ts] for ts in (weights, biases)]
    arguments = (
        x.requires_grad_(),
        *leaves,
        *conv,
        case.up or 0,
        case.act is not None,
        *norm,
        recompute,
        True,
    )
    torch.library.opcheck(torch.ops.fastcyclegan.zero_conv_fwd, arguments)
    with torch.no_grad():
        _, mean, rstd, y = torch.ops.fastcyclegan.zero_conv_fwd(*arguments)
    saved = (dy, x.detach(), mean, rstd, [w.detach() for w in weights], y)
    # If y is saved, no gradient of the input is requested.
    needs = [recompute, bool(biases), False, True]
    torch.library.opcheck(torch.ops.fastcyclegan.zero_conv_bwd, (*saved, *conv, *norm, needs, True))


def test_compiles_to_one_graph_and_keeps_strides(device: str) -> None:
    """Compiled forward and backward passes have one graph each, and results with the same strides as eager.

    The case is the one with the most launches, but with three output channels: with one, strides would be
    arbitrary.
    """
    case = replace(LAST, out=3)
    tensors = operands(case, device)
    eager = results(ours(case), *tensors)
    compiled = results(
        torch.compile(lambda x, w, b: ours(case)(x * 1, w, b).mul(1), fullgraph=True), *tensors
    )
    for name, result in eager.items():
        torch.testing.assert_close(compiled[name], result)
        assert compiled[name].stride() == result.stride()


def test_double_backward_raises(device: str) -> None:
    x, weights, biases, _ = operands(DOWN, device)
    (grad,) = torch.autograd.grad(
        ours(DOWN)(x.requires_grad_(), weights, biases).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"zero_conv: the Triton kernels do not support double backward"):
        grad.sum().backward()
