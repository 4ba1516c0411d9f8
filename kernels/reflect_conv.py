"""Reflection-padded convolution, with an optional norm before it and an optional tanh after it.

    y = act(IN(x)) or x, padded with ``padding`` reflected pixels
    out = conv(y, weight) + bias, or the tanh of this

This is one autograd node. The stride is 1 and kernel sizes are odd. There can be one weight or P of them:
image n of N uses weight n // (N / P), so that several networks run in one launch. ``norm_conv.py`` is the
counterpart that uses PyTorch's convolution, with any stride. The node saves x, the norm's two vectors [N, C],
the output if it is a tanh, and the weights as they were passed in. (For a 16-bit x, fp32 weights are rounded
on each use.) README.md beside this file derives the passes and their forms. The kernels are in
reflect_conv_triton.py, tiles and launches in _products.py, and the weight layouts that they read in
_weights.py; reflect_conv_passes.py puts them together.

A generator's residual blocks are computed by residual_block.py instead, as one node each. While the engine
runs an iteration, weights may have working copies (_working_copies.py), and weight gradients may be added to
``.grad`` in place (_weight_gradients.py) and computed on a side stream (_overlap.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._calls import ReflectConvCall, ReflectConvSaved
from ._checks import (
    biases_of,
    check_biases,
    check_images,
    check_integer,
    check_padding,
    check_pixels,
    check_vectors,
    check_weights,
    tensors_of,
    under_autocast,
)
from ._convolution import Convolution
from ._fallback import backward_in_place
from ._layout import channels_last, empty_channels_last, empty_result, in_dtype
from ._norm import Norm, affine_gradients, empty_statistics
from ._operator import operator, refuse_double_backward
from ._overlap import on_side_stream
from ._weight_gradients import each_weight, gradients_to_add_to, spread, spread_bias
from .dispatch import resolve_impl


def reflect_conv2d_ref(
    x: Tensor,
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor] | None = None,
    *,
    padding: int,
) -> Tensor:
    """Compute ``reflect_conv2d`` in plain PyTorch. This is the reference that the kernels must match."""
    weights = [weight] if isinstance(weight, Tensor) else list(weight)
    biases = [bias] * len(weights) if bias is None or isinstance(bias, Tensor) else list(bias)
    y = F.pad(x, (padding,) * 4, mode="reflect") if padding else x
    parts = []
    for share, w, b in each_weight(y, weights, biases):
        parts.append(F.conv2d(share, w.to(x.dtype), in_dtype(b, x.dtype)))
    return torch.cat(parts)


# --- Operators ----------------------------------------------------------------------------------------------

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def _check(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], padding: int) -> None:
    check_weights("reflect_conv2d", "weight", x, weights)
    check_padding("reflect_conv2d", x, padding, weights[0].shape[2])
    check_biases("reflect_conv2d", x, biases, weights)


def _check_call(*arguments: Any) -> None:
    call = ReflectConvCall.of(*arguments)
    _check(call.x, call.weight, call.bias, call.padding)
    if call.normed:
        check_pixels(call.x)
        check_vectors("reflect_conv2d", call.x, call.norm.weight, call.norm.bias)


@operator(
    "(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor[] weight, Tensor[] bias, bool norm, float eps,"
    " str act, float slope, int padding, bool tanh, bool recompute, bool required)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _check_call,
)
def reflect_conv_fwd(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: list[Tensor],
    bias: list[Tensor],
    normed: bool,
    eps: float,
    act: str,
    slope: float,
    padding: int,
    tanh: bool,
    recompute: bool,
) -> Four:
    """Return the convolution's output, the mean and rstd [N, C] of x, and y, the norm's padded output.

    mean and rstd are empty without a norm. y is empty if there is no norm or the backward recomputes it.
    """
    norm = Norm(norm_weight, norm_bias, eps, act, slope)
    return forward(ReflectConvCall(x, normed, norm, weight, bias, padding, tanh, recompute))


def forward(call: ReflectConvCall) -> Four:
    """Run the forward pass; see ``reflect_conv_fwd``."""
    from . import border_launch, instance_norm_launch
    from . import reflect_conv_passes as passes
    from ._weights import stacked

    x, bias, padding = call.x, call.bias, call.padding
    route = passes.route_of(x.shape[1], call.weight[0].shape[0], call.normed)
    mean, rstd = empty_statistics(x, False)
    y = empty_result(x)
    stack = stacked(call.weight, x.dtype)
    if call.normed:
        y, mean, rstd = instance_norm_launch.forward(x, call.norm, border=padding)
        out = passes.forward_bordered(y, stack, bias, call.tanh, route)
    elif route == "contract":
        bordered = border_launch.reflect_pad(x, padding) if padding else x
        out = passes.forward_bordered(bordered, stack, bias, call.tanh, route)
    else:
        out = passes.forward(x, stack, bias, padding, route)
        if call.tanh:
            out = torch.tanh(out.float())
    if not call.keeps_y:
        y = empty_result(x)
    return out, mean, rstd, y


@reflect_conv_fwd.register_fake
def _(*flat: Any) -> Four:
    *arguments, _ = flat
    _check_call(*arguments)
    call = ReflectConvCall.of(*arguments)
    x, weight = call.x, call.weight[0]
    N, C, H, W = x.shape
    H, W = H + 2 * call.padding, W + 2 * call.padding
    k = weight.shape[2]
    dtype = torch.float32 if call.tanh else x.dtype
    out = empty_channels_last(x, (N, weight.shape[0], H - k + 1, W - k + 1), dtype)
    y = empty_channels_last(x, (N, C, H, W)) if call.keeps_y else empty_result(x)
    return out, *empty_statistics(x, call.normed), y


@operator(
    "(Tensor g, Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor mean, Tensor rstd, Tensor[] weight,"
    " Tensor out, Tensor y, str act, float slope, int padding, bool[] needs, bool required)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
def reflect_conv_bwd(
    g: Tensor,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight: list[Tensor],
    out: Tensor,
    y: Tensor,
    act: str,
    slope: float,
    padding: int,
    needs: list[bool],
) -> Four:
    """Return the gradients dx, dweight [R, O, C, k, k] and dbias [P, O], and the norm's total [2, N, C].

    The entries of ``needs`` tell whether x, the biases and each weight need a gradient, and
    R is the number of weights that need one. Gradients that are not needed are empty, but with a norm, dx and
    total are always computed. ``out`` is the output if a tanh was applied, otherwise empty. y is empty if it
    must be recomputed.
    """
    from ._weights import empty_gradients

    norm = Norm(norm_weight, norm_bias, act=act, slope=slope)
    saved = ReflectConvSaved(x, norm, mean, rstd, weight, out, y, padding)
    dweight = empty_gradients(weight, needs[2:])
    dx, dbias, total = backward(g, saved, needs, list(dweight), False)
    return dx, dweight, dbias.contiguous(), total


def backward(
    g: Tensor, saved: ReflectConvSaved, needs: Sequence[bool], into: Sequence[Tensor], accumulate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the backward pass (see ``reflect_conv_bwd``) and return dx, dbias and total.

    The weight gradients are written to ``into``, or added to it if ``accumulate`` is True.
    """
    from . import border_launch
    from . import reflect_conv_passes as passes
    from ._tiles import empty_bordered
    from ._weights import stacked

    x, y, weight, padding = saved.x, saved.y, saved.weight, saved.padding
    O, C, k, _ = weight[0].shape
    route = passes.route_of(C, O, saved.normed)
    stack, g = stacked(weight, x.dtype), channels_last(g)
    tanh = saved.out if saved.out.dim() == 4 else None
    d_out = passes.embedded_gradient(g, k, x.dtype, tanh, route)
    writes_y = saved.normed and y.dim() == 1 and any(needs[2:])
    if writes_y:
        # The norm's backward reads x anyway, and fills y for the weight gradients.
        y = empty_bordered(x, padding)
    dx, total = empty_result(x), empty_result(x, torch.float32)
    if saved.normed or needs[0]:
        size = (x.shape[2] + 2 * padding, x.shape[3] + 2 * padding)
        d_y = passes.input_gradient(d_out, stack, size, route)
        if saved.normed:
            dx, total = _through_border_and_norm(d_y, saved, y if writes_y else None)
        else:
            dx = border_launch.fold(d_y, padding) if padding else d_y
    if any(needs[2:]):
        source = border_launch.Pixels.of(y) if saved.normed else passes.bordered(x, padding, k, route)
        with on_side_stream(d_out.data, source.data, when=accumulate):
            passes.weight_gradients(d_out, source, g.shape[2], weight, needs[2:], into, accumulate, route)
    dbias = passes.bias_gradient(d_out, len(weight), O) if needs[1] else empty_result(total)
    return dx, dbias, total


def _through_border_and_norm(d_y: Tensor, saved: ReflectConvSaved, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return dx and total, given ``d_y``, the gradient of the norm's padded output.

    If ``y`` is given, this output is written to it again.
    """
    from .border_launch import fold_border_
    from .instance_norm_launch import Extras
    from .instance_norm_launch import backward as norm_backward

    padding = saved.padding
    if padding:
        fold_border_(d_y, padding)
    extras = Extras(dy_border=padding, y_border=0 if y is None else padding, y=y)
    return norm_backward(d_y, saved.x, saved.norm, saved.mean, saved.rstd, extras)


@reflect_conv_bwd.register_fake
def _(g: Tensor, *flat: Any) -> Four:
    from ._weights import empty_gradients

    *arguments, needs, _ = flat
    saved = ReflectConvSaved.of(*arguments)
    x, weight = saved.x, saved.weight
    dx = torch.empty_like(x) if saved.normed or needs[0] else empty_result(x)
    bias = (len(weight), weight[0].shape[0]) if needs[1] else (0,)
    total = (2, *x.shape[:2]) if saved.normed else (0,)
    return (
        dx,
        empty_gradients(weight, needs[2:]),
        x.new_empty(bias, dtype=torch.float32),
        x.new_empty(total, dtype=torch.float32),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Four) -> None:
    *flat, ctx.required = inputs
    call = ReflectConvCall.of(*flat)
    out, mean, rstd, y = output
    ctx.mark_non_differentiable(mean, rstd, y)
    ctx.set_materialize_grads(False)
    norm, ctx.count = call.norm, len(call.weight)
    ctx.options = (norm.act, norm.slope, call.padding)
    results = (mean, rstd, out if call.tanh else empty_result(call.x), y)
    ctx.save_for_backward(call.x, norm.weight, norm.bias, *results, *call.weight, *call.bias)


def _backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Any, ...]:
    if g is None:
        return (None,) * 13
    x, norm_weight, norm_bias, mean, rstd, out, y, *weight = ctx.saved_tensors
    weight, bias = weight[: ctx.count], weight[ctx.count :]
    saved = ReflectConvSaved.of(x, norm_weight, norm_bias, mean, rstd, weight, out, y, *ctx.options)
    needs_x, needs_nw, needs_nb, needs_w, needs_b = ctx.needs_input_grad[:5]
    needs = [needs_x, any(needs_b), *needs_w]
    flat = (g, *saved.flat(), needs)
    into = gradients_to_add_to(weight, needs_w)
    if into is None:
        dx, dweight, dbias, total = torch.ops.fastcyclegan.reflect_conv_bwd(*flat, ctx.required)
        dweights = spread(dweight, needs_w)
    else:
        run = functools.partial(backward, g, saved, needs, into, True)
        dx, dbias, total = backward_in_place("reflect_conv_bwd", run, flat, into, ctx.required)
        dweights = [None] * len(weight)
    d_norm = affine_gradients(total, saved.norm, (needs_nw, needs_nb))
    return (dx if needs_x else None, *d_norm, dweights, spread_bias(dbias, bias, needs_b), *(None,) * 8)


reflect_conv_fwd.register_autograd(_backward, setup_context=_setup)
reflect_conv_bwd.register_autograd(refuse_double_backward("reflect_conv2d"))


# --- The public function ------------------------------------------------------------------------------------


def reflect_conv2d(
    x: Tensor,
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor] | Sequence[None] | None = None,
    *,
    padding: int,
    impl: str = "auto",
) -> Tensor:
    """Convolve x with stride 1, after padding it with ``padding`` reflected pixels on each side.

    x: [N, C, H, W]; channels_last memory is read directly, and any other layout is copied once. weight: [O,
    C, k, k] with odd k, in the dtype of x or in fp32 (then rounded on use), or a list of P such weights,
    where N is a multiple of P: image n uses weight n // (N / P). bias: [O] or None; with a list of weights, a
    list of P biases (all tensors or all None), or one bias that all weights share. Under autocast, x is cast
    as for PyTorch's convolutions. impl: "triton", "cpp", "reference" (``F.pad`` and ``F.conv2d``) or "auto",
    which is Triton on an NVIDIA GPU, the C++ kernels or PyTorch, whichever is faster, on a CPU that supports
    them, and the reference elsewhere. If a kernel does not compile or launch,
    "auto" warns once and falls back to PyTorch, and "triton" raises KernelError.

    The result is [N, O, H', W'] in channels_last and in the dtype of x, with H' = H + 2 padding - k + 1. Sums
    are computed in fp32. fp32 products use TF32 if PyTorch's own convolutions may use it
    (``torch.backends.cudnn.allow_tf32``), and IEEE arithmetic otherwise. The same input always gives the same
    bits. x and the weights are saved for the backward.

    Raises ValueError for an invalid shape, padding, device or impl, TypeError for an unsupported dtype, and
    RuntimeError in a double backward through the Triton kernels.
    """
    check_images("reflect_conv2d", x)
    weights = tensors_of("reflect_conv2d", "weight", weight)
    biases = biases_of("reflect_conv2d", bias, len(weights))
    check_integer("reflect_conv2d", "padding", padding)
    x, weights, biases = under_autocast(x, weights, biases)
    chosen = resolve_impl("reflect_conv2d", impl, x)
    if chosen != "triton":
        _check(x, weights, biases, padding)
    if chosen == "reference":
        return reflect_conv2d_ref(x, weights, biases if biases else None, padding=padding)
    if chosen == "cpp":
        from .cpu.calls import convolve_each

        return convolve_each(x, weights, biases, Convolution(), border=padding, required=impl == "cpp")
    return reflect_conv(x, weights, biases, padding=padding, required=impl == "triton")


def reflect_conv(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    *,
    padding: int,
    norm: bool = False,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
    tanh: bool = False,
    recompute: bool = True,
    required: bool = True,
) -> Tensor:
    """Compute ``reflect_conv2d`` of act(IN(x)), or of x if ``norm`` is false, with the kernels.

    This function is internal to the package; see the module docstring. x: [N, C, H, W]; channels_last memory
    is read directly. ``weight`` and ``bias`` are lists, and their tensors are as in ``reflect_conv2d``. If
    ``tanh`` is true, the tanh of the convolution is returned, in fp32. If ``recompute`` is true, the backward
    recomputes y; otherwise y is saved. If ``required`` is true, a kernel that fails raises KernelError;
    if it is false, PyTorch computes the result instead. Raises as ``reflect_conv2d`` does.
    """
    options = (norm, eps, act, slope, padding, tanh, recompute, required)
    return torch.ops.fastcyclegan.reflect_conv_fwd(
        channels_last(x), norm_weight, norm_bias, list(weight), list(bias), *options
    )[0]
