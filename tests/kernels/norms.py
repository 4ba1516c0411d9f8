"""Helpers for the tests of instance norm: layouts, PyTorch's own norm, gradients, and a float64 check."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan import reference
from fastcyclegan.kernels import instance_norm, instance_norm_ref
from fastcyclegan.testing import assert_parity

NAMES = ("y", "dx", "dweight", "dbias", "dresidual")


def in_layout(x: Tensor, planes: bool) -> Tensor:
    return x.contiguous() if planes else x.movedim(1, -1).contiguous().movedim(-1, 1)


def torch_instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, **options: Any) -> Tensor:
    """Compute the norm with PyTorch's operators in the dtype of x, as the baseline for the parity rule."""
    y = reference.contiguous_gradient(F.instance_norm(x, weight=weight, bias=bias, eps=options["eps"]))
    y = {"none": lambda y: y, "relu": F.relu, "leaky_relu": lambda y: F.leaky_relu(y, options["slope"])}[
        options["act"]
    ](y)
    return y if options["residual"] is None else y + options["residual"]


def gradients(
    run: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    dy: Tensor,
    **options: Any,
) -> list:
    """Compute y and the gradients of all given tensors with ``run``, and return them as (name, tensor) pairs.

    Tensors that are None are left out.
    """
    leaves = [t if t is None else t.detach().requires_grad_() for t in (x, weight, bias, residual)]
    y = run(leaves[0], leaves[1], leaves[2], residual=leaves[3], **options)
    y.backward(dy)
    results = [y, *(t if t is None else t.grad for t in leaves)]
    return [(name, t) for name, t in zip(NAMES, results, strict=True) if t is not None]


def check(
    x: Tensor, weight: Any = None, bias: Any = None, residual: Any = None, dy: Any = None, **options: Any
) -> None:
    """Assert that y and all gradients of instance_norm obey the parity rule, on the given tensors."""
    options = {"eps": 1e-5, "slope": 0.2, "act": "none", **options}
    tensors = [x, weight, bias, residual, torch.randn_like(x) if dy is None else dy]
    ours = gradients(lambda *a, **k: instance_norm(*a, impl="triton", **k), *tensors, **options)
    baseline = gradients(torch_instance_norm, *tensors, **options)
    truth = gradients(instance_norm_ref, *(t if t is None else t.double() for t in tensors), **options)
    for (name, got), (_, other), (_, true) in zip(ours, baseline, truth, strict=True):
        assert_parity(name, got, other, true, x.dtype)
    assert ours[0][1].stride() == x.stride()
    assert ours[0][1].dtype == x.dtype
