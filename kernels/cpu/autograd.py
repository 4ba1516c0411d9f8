"""The gradients of the operators in ``operators.py``.

A gradient that is itself to be differentiated (``create_graph=True``, as for a gradient penalty) is computed
by PyTorch from the operator's reference, which can be differentiated any number of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._calls import NormConvCall
from .._layout import in_dtype
from .._norm import Norm, affine_gradients
from .._plain_parts import normalised, reflected, statistics
from .._weight_gradients import gradients_to_add_to
from ..dispatch import asks_gradient
from .operators import LIBRARY

OPS = torch.ops.fastcyclegan
Gradients = tuple[Tensor | None, ...]


def _register(name: str, backward: Callable[..., Any], setup: Callable[..., None]) -> None:
    """Register ``backward``. torch.library.register_autograd takes 0.1 ms on every call of the operator."""
    operator = getattr(OPS, name).default

    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        results = below(*arguments)
        setup(ctx, arguments, results)
        return results

    def below(*arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            results: tuple[Tensor, ...] = operator(*arguments)
        return results

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"Autograd_{name}", (torch.autograd.Function,), members)

    def differentiable(*arguments: Any) -> tuple[Tensor, ...]:
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        if asks_gradient(tensors[0], tensors):
            results: tuple[Tensor, ...] = function.apply(*arguments)
            return results
        return below(*arguments)

    LIBRARY.impl(name, differentiable, "Autograd")


def _differentiable(
    reference: Callable[..., Tensor], tensors: Sequence[Tensor | None], needs: Sequence[bool], g: Tensor
) -> list[Tensor | None]:
    """Return the gradients of ``reference(*tensors)`` that ``needs`` selects, which can be differentiated."""
    # Views, because x may have been computed from the weight, for example if that is used twice. How x
    # depends on the weight is no part of this operator's gradient.
    views = [None if t is None else t.view_as(t) for t in tensors]
    wanted = [t for t, need in zip(views, needs, strict=True) if need and t is not None]
    if not wanted:
        return [None] * len(views)
    with torch.autocast("cpu", enabled=False):
        y = reference(*views)
    found = iter(torch.autograd.grad(y, wanted, g.to(y.dtype), create_graph=True))
    return [next(found) if need and t is not None else None for t, need in zip(views, needs, strict=True)]


def _norm_by_pytorch(x: Tensor, norm: Norm) -> Tensor:
    return normalised(x, norm, *statistics(x, norm.eps)).to(x.dtype)


# --- cpp_norm -----------------------------------------------------------------------------------------------


def _set_up_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, ctx.eps, ctx.act, ctx.slope = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, mean, rstd)
    ctx.has_residual = residual is not None


def _norm_backward(ctx: Any, g: Tensor | None, *_: None) -> Gradients:
    if g is None:
        return (None,) * 7
    x, weight, bias, mean, rstd = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    dx = dweight = dbias = None
    dresidual = g if ctx.has_residual else None
    if torch.is_grad_enabled():

        def reference(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return _norm_by_pytorch(x, Norm(weight, bias, ctx.eps, ctx.act, ctx.slope))

        dx, dweight, dbias = _differentiable(reference, (x, weight, bias), needs, g)
    elif any(needs):
        dx, total = OPS.cpp_norm_backward(g, x, weight, bias, mean, rstd, ctx.act, ctx.slope)
        dweight, dbias = affine_gradients(total, Norm(weight, bias), needs[1:])
    return dx if needs[0] else None, dweight, dbias, dresidual, None, None, None


_register("cpp_norm", _norm_backward, _set_up_norm)


# --- cpp_norm_conv ------------------------------------------------------------------------------------------


def _set_up_conv(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *flat, _, ctx.by = inputs
    call = NormConvCall.of(*flat)
    _, mean, rstd, y = output
    ctx.mark_non_differentiable(mean, rstd, y)
    ctx.set_materialize_grads(False)
    norm, ctx.conv, ctx.normed, ctx.eps = call.norm, call.conv, call.normed, call.norm.eps
    ctx.options = (norm.act, norm.slope, call.border)
    ctx.has_bias = call.bias is not None
    saved = (norm.weight, norm.bias, mean, rstd, call.weight, y)
    ctx.save_for_backward(call.x, *saved, *([call.bias] if ctx.has_bias else []))


def _conv_backward(ctx: Any, g: Tensor | None, *_: None) -> Gradients:
    nothing = (None,) * 14
    if g is None:
        return (*(None,) * 5, *nothing)
    saved_tensors = ctx.saved_tensors
    x, norm_weight, norm_bias, mean, rstd, weight, y = saved_tensors[:7]
    needs_x, needs_nw, needs_nb, needs_w, needs_b = ctx.needs_input_grad[:5]
    if torch.is_grad_enabled():
        bias = saved_tensors[7] if ctx.has_bias else None
        tensors = (x, norm_weight, norm_bias, weight, bias)
        found = _differentiable(_reference_of(ctx), tensors, ctx.needs_input_grad[:5], g)
        return (*found, *nothing)
    needs = [needs_x, needs_w, needs_b]
    flat = (x, norm_weight, norm_bias, mean, rstd, weight, y, *ctx.options, needs, *ctx.conv.flat())
    into = gradients_to_add_to([weight], [True]) if needs_w else None
    if into is None:
        dx, dweight, dbias, total = OPS.cpp_norm_conv_backward(g, *flat, ctx.by)
    else:
        dx, dweight, dbias, total = OPS.cpp_norm_conv_backward_(into[0], g, *flat, ctx.by)
        needs_w = False
    d_norm = affine_gradients(total, Norm(norm_weight, norm_bias), (needs_nw, needs_nb))
    gradients: list[Tensor | None] = []
    for gradient, need in ((dx, needs_x), (dweight, needs_w), (dbias, needs_b)):
        gradients.append(gradient if need else None)
    return (gradients[0], *d_norm, *gradients[1:], *nothing)


def _reference_of(ctx: Any) -> Callable[..., Tensor]:
    """Return ``cpp_norm_conv`` in plain PyTorch, as a function of the tensors whose gradients it has."""
    (act, slope, border), conv = ctx.options, ctx.conv

    def reference(
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        y = x
        if ctx.normed:
            y = _norm_by_pytorch(x, Norm(norm_weight, norm_bias, ctx.eps, act, slope))
        y, bias = reflected(y, border), in_dtype(bias, x.dtype)
        out: Tensor = torch.ops.aten.convolution(y, weight.to(x.dtype), bias, *conv.flat())
        return out

    return reference


_register("cpp_norm_conv", _conv_backward, _set_up_conv)
