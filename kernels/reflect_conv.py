"""A reflection-padded convolution, alone or with the instance norm and activation before it and the tanh
after it. One autograd node.

    y = act(IN(x)) or x, with ``padding`` reflected pixels around it
    out = conv(y, weight) + bias, or its tanh

Stride 1, odd kernels, one weight or P: image n of N uses weight n // (N / P), which is how several networks
run in one launch. ``norm_conv.py`` has the same node around PyTorch's convolution, of any stride. The
backward saves x (and two vectors [N, C] of the norm, and the output if it is a tanh) and the weights as they
were given: weights in fp32 for x in 16 bits are rounded for each use. README.md beside this file derives the
passes and their forms. The kernels are in reflect_conv_triton.py, tiles and launches in _products.py, weights
in the forms that those read in _weights.py, and reflect_conv_passes.py puts them together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import (
    check_padding,
    check_pixels,
    check_tensor,
    check_vectors,
    check_weights,
    tensors_of,
    under_autocast,
)
from ._fallback import backward_in_place
from ._layout import channels_last
from ._operator import operator, refuse_double_backward
from ._overlap import beside
from ._weight_gradients import each_weight, gradients_to_add_to, spread, spread_bias
from .dispatch import resolve_impl
from .instance_norm import affine_gradients


def reflect_conv2d_ref(
    x: Tensor,
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor] | None = None,
    *,
    padding: int,
) -> Tensor:
    """The specification, in plain PyTorch."""
    weights = [weight] if isinstance(weight, Tensor) else list(weight)
    biases = [bias] * len(weights) if bias is None or isinstance(bias, Tensor) else list(bias)
    y = F.pad(x, (padding,) * 4, mode="reflect") if padding else x
    return torch.cat(
        [
            F.conv2d(y, w.to(x.dtype), b if b is None else b.to(x.dtype))
            for y, w, b in each_weight(y, weights, biases)
        ]
    )


# --- Operators ----------------------------------------------------------------------------------------------

_NORM = "bool norm, float eps, str act, float slope"


@operator(
    f"(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor[] weight, Tensor[] bias, {_NORM}, int"
    " padding, bool tanh, bool recompute, bool required) -> (Tensor, Tensor, Tensor, Tensor)"
)
def reflect_conv_fwd(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: list[Tensor],
    bias: list[Tensor],
    norm: bool,
    eps: float,
    act: str,
    slope: float,
    padding: int,
    tanh: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the convolution's output, mean and rstd [N, C] (empty without norm), and y (empty where there is
    none or it is recomputed).
    """
    from . import border_launch, instance_norm_launch
    from . import reflect_conv_passes as passes
    from ._weights import stacked
    from .reflect_conv_passes import route_of

    route = route_of(x.shape[1], weight[0].shape[0], norm)
    mean, rstd, y = x.new_empty(0, dtype=torch.float32), x.new_empty(0, dtype=torch.float32), x.new_empty(0)
    stack = stacked(weight, x.dtype)
    if norm:
        y, mean, rstd = instance_norm_launch.forward(
            x, norm_weight, norm_bias, None, eps, act, slope, padding
        )
        out = passes.forward_bordered(y, stack, bias, tanh, route)
    elif route == "contract":
        out = passes.forward_bordered(border_launch.reflect_pad(x, padding), stack, bias, tanh, route)
    else:
        out = passes.forward(x, stack, bias, padding, route)
        out = torch.tanh(out.float()) if tanh else out
    return out, mean, rstd, y if norm and not recompute else x.new_empty(0)


def _out_shape(x: Tensor, weight: Sequence[Tensor], padding: int) -> tuple[Any, ...]:
    k = weight[0].shape[2]
    return x.shape[0], weight[0].shape[0], x.shape[2] + 2 * padding - k + 1, x.shape[3] + 2 * padding - k + 1


@reflect_conv_fwd.register_fake
def _(
    x: Tensor, nw: Any, nb: Any, weight: list[Tensor], bias: Any, norm: bool, *rest: Any
) -> tuple[Tensor, ...]:
    *_, padding, tanh, recompute, _ = rest
    dtype = torch.float32 if tanh else x.dtype
    out = torch.empty(
        _out_shape(x, weight, padding), dtype=dtype, device=x.device, memory_format=torch.channels_last
    )
    mean, rstd = (x.new_empty(x.shape[:2] if norm else (0,), dtype=torch.float32) for _ in range(2))
    bordered = (x.shape[0], x.shape[1], x.shape[2] + 2 * padding, x.shape[3] + 2 * padding)
    y = (
        torch.empty(bordered, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        if norm and not recompute
        else x.new_empty(0)
    )
    return out, mean, rstd, y


@operator(
    "(Tensor g, Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor mean, Tensor rstd, Tensor[] weight,"
    " Tensor out, Tensor y, str act, float slope, int padding, bool[] needs, bool required) -> (Tensor,"
    " Tensor, Tensor, Tensor)"
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return dx, dweight [R, O, C, k, k] of those R weights that need one, dbias [P, O], and the norm's total
    [2, N, C].

    ``needs``: of x, of the bias, and of each weight. What is not wanted is empty; with norm dx and total are
    always made. ``out`` is the output if it was a tanh, else empty; y is empty where it is to be recomputed.
    """
    from ._weights import empty_gradients

    dweight = empty_gradients(weight, needs[2:])
    found = backward(
        g,
        x,
        norm_weight,
        norm_bias,
        mean,
        rstd,
        weight,
        out,
        y,
        act,
        slope,
        padding,
        needs,
        list(dweight),
        False,
    )
    return found[0], dweight, found[1].contiguous(), found[2]


def backward(
    g: Tensor,
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight: Sequence[Tensor],
    out: Tensor,
    y: Tensor,
    act: str,
    slope: float,
    padding: int,
    needs: Sequence[bool],
    into: Sequence[Tensor],
    accumulate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass, weight gradients written (or added) to ``into``; see ``reflect_conv_bwd``. Returns
    dx, dbias and total.
    """
    from . import border_launch, instance_norm_launch
    from . import reflect_conv_passes as passes
    from ._tiles import empty_bordered
    from ._weights import stacked
    from .reflect_conv_passes import route_of

    norm, tanh = mean.dim() == 2, out.dim() == 4
    total, dx, stack = x.new_empty(0, dtype=torch.float32), x.new_empty(0), stacked(weight, x.dtype)
    g, route, k = channels_last(g), route_of(x.shape[1], weight[0].shape[0], norm), weight[0].shape[2]
    dy = passes.embedded_gradient(g, k, x.dtype, out if tanh else None, route)
    recompute = norm and y.dim() == 1 and any(needs[2:])
    if recompute:
        y = empty_bordered(x, padding)
    if norm or needs[0]:
        size = (x.shape[2] + 2 * padding, x.shape[3] + 2 * padding)
        dx = passes.input_gradient(dy, stack, size, route)
        if norm:
            if padding:
                border_launch.fold_border_(dx, padding)
            extras = instance_norm_launch.Extras(dy_border=padding, y_border=padding if recompute else 0)
            written = y if recompute else None
            dx, total = instance_norm_launch.backward(
                dx, x, norm_weight, norm_bias, mean, rstd, act, slope, extras, written
            )
        elif padding:
            dx = border_launch.fold(dx, padding)
    if any(needs[2:]):
        if norm:
            source = border_launch.Pixels.of(y)
        elif route == "expand":
            source = passes.bordered_picture(x, padding, k)
        else:
            source = border_launch.Pixels.of(border_launch.reflect_pad(x, padding))
        with beside(dy.data, source.data) if accumulate else contextlib.nullcontext():
            passes.weight_gradients(dy, source, g.shape[2], weight, needs[2:], into, accumulate, route)
    dbias = passes.bias_gradient(dy, len(weight), weight[0].shape[0]) if needs[1] else total.new_empty(0)
    return dx, dbias, total


@reflect_conv_bwd.register_fake
def _(
    g: Tensor, x: Tensor, nw: Any, nb: Any, mean: Tensor, rstd: Tensor, weight: list[Tensor], *rest: Any
) -> tuple[Tensor, ...]:
    from ._weights import empty_gradients

    needs, norm = rest[-2], mean.dim() == 2
    return (
        torch.empty_like(x) if norm or needs[0] else x.new_empty(0),
        empty_gradients(weight, needs[2:]),
        x.new_empty((len(weight), weight[0].shape[0]) if needs[1] else (0,), dtype=torch.float32),
        x.new_empty((2, *x.shape[:2]) if norm else (0,), dtype=torch.float32),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, norm_weight, norm_bias, weight, bias, _, _, ctx.act, ctx.slope, ctx.padding, tanh, _, ctx.required = (
        inputs
    )
    out, mean, rstd, y = output
    ctx.mark_non_differentiable(mean, rstd, y)
    ctx.set_materialize_grads(False)
    ctx.count = len(weight)
    ctx.save_for_backward(
        x, norm_weight, norm_bias, mean, rstd, out if tanh else x.new_empty(0), y, *weight, *bias
    )


def _backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Any, ...]:
    if g is None:
        return (None,) * 13
    x, norm_weight, norm_bias, mean, rstd, out, y, *weight = ctx.saved_tensors
    weight, bias = weight[: ctx.count], weight[ctx.count :]
    needs_x, needs_nw, needs_nb, needs_w, needs_b = ctx.needs_input_grad[:5]
    needs = [needs_x, any(needs_b), *needs_w]
    saved = (g, x, norm_weight, norm_bias, mean, rstd, weight, out, y, ctx.act, ctx.slope, ctx.padding, needs)
    if (into := gradients_to_add_to(weight, needs_w)) is not None:
        dx, dbias, total = backward_in_place("reflect_conv_bwd", backward, saved, into, ctx.required)
        dweights: list[Tensor | None] = [None] * len(weight)
    else:
        dx, dweight, dbias, total = torch.ops.fastcyclegan.reflect_conv_bwd(*saved, ctx.required)
        dweights = spread(dweight, needs_w)
    d_norm = affine_gradients(total, norm_weight if needs_nw else None, norm_bias if needs_nb else None)
    return (dx if needs_x else None, *d_norm, dweights, spread_bias(dbias, bias, needs_b), *(None,) * 8)


reflect_conv_fwd.register_autograd(_backward, setup_context=_setup)
reflect_conv_bwd.register_autograd(refuse_double_backward("reflect_conv2d"))


# --- The public function ------------------------------------------------------------------------------------


def _check_bias(x: Tensor, bias: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    if bias and len(bias) != len(weights):
        raise ValueError(
            f"reflect_conv2d: bias must have as many tensors as weight, {len(weights)}, got {len(bias)}"
        )
    for b in bias:
        if b.shape != (weights[0].shape[0],):
            raise ValueError(
                f"reflect_conv2d: bias must be [{weights[0].shape[0]}], a number for each output channel, got"
                f" {list(b.shape)}"
            )
        if b.dtype not in (x.dtype, torch.float32):
            raise TypeError(f"reflect_conv2d: bias must be {x.dtype} (as x) or torch.float32, got {b.dtype}")
        if b.device != x.device:
            raise ValueError(f"reflect_conv2d: bias must be on the device of x, {x.device}, got {b.device}")


def reflect_conv2d(
    x: Tensor,
    weight: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor] | Sequence[None] | None = None,
    *,
    padding: int,
    impl: str = "auto",
) -> Tensor:
    """Return the convolution, with stride 1, of x with ``padding`` reflected pixels on each side.

    x: [N, C, H, W]; channels_last memory is read as it is, another layout is copied once. The result is [N,
    O, H', W'] in channels_last and the dtype of x, H' = H + 2 padding - k + 1. weight: [O, C, k, k], k odd,
    in the dtype of x or fp32, which is then rounded for the use; or a list of P of them, N a multiple of P:
    image n uses weight n // (N / P). bias: [O] or None; with a list of weights a list of P (tensors, or None
    alone), or one that all share. Under autocast x is cast as for PyTorch's convolutions. Sums are fp32;
    products of fp32 are TF32 where PyTorch's own convolutions may use it
    (``torch.backends.cudnn.allow_tf32``), else IEEE. impl: "triton", "reference" (``F.pad`` and
    ``F.conv2d``), or "auto": Triton on an NVIDIA GPU, the reference elsewhere. Where a kernel does not
    compile or launch, "auto" warns once and PyTorch computes it, and "triton" raises KernelError.

    The backward saves x and the weights. Same input, same bits. Raises ValueError for a shape, padding,
    device or impl that does not fit, TypeError for a dtype, and RuntimeError in a double backward through the
    kernels.
    """
    check_tensor("reflect_conv2d", x)
    weights = tensors_of("reflect_conv2d", "weight", weight)
    if bias is None or (
        not isinstance(bias, Tensor) and isinstance(bias, Iterable) and all(b is None for b in bias)
    ):
        biases = []
    else:
        biases = (
            [bias] * len(weights) if isinstance(bias, Tensor) else tensors_of("reflect_conv2d", "bias", bias)
        )
    x, weights, biases = under_autocast(x, weights, biases)
    check_weights("reflect_conv2d", "weight", x, weights)
    check_padding("reflect_conv2d", x, padding, weights[0].shape[2])
    _check_bias(x, biases, weights)
    if resolve_impl("reflect_conv2d", impl, x) == "reference":
        return reflect_conv2d_ref(x, weights, biases or None, padding=padding)
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
    """Return ``reflect_conv2d`` of act(IN(x)) by the kernels, its tanh in fp32 if asked for; internal to the
    package. See the module.

    x: [N, C, H, W] in channels_last. ``recompute``: the backward computes y again, else it is kept.
    ``required``: a kernel that fails raises KernelError, else PyTorch computes it.
    """
    if norm:
        check_pixels(x)
        check_vectors("reflect_conv", x, norm_weight, norm_bias)
    check_padding("reflect_conv", x, padding, weight[0].shape[2])
    options = (norm, eps, act, slope, padding, tanh, recompute, required)
    return torch.ops.fastcyclegan.reflect_conv_fwd(
        channels_last(x), norm_weight, norm_bias, list(weight), list(bias), *options
    )[0]
