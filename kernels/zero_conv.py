"""A zero-padded convolution, of stride 1 or 2 or transposed, with the instance norm and activation before it.
One autograd node.

    y = act(IN(x)) or x;    out = conv(y, weight) + bias, or conv_transpose

One weight or P of them: image n uses weight n // (N / P), which is how several networks run in one launch.
``norm_conv.py`` has the same node around PyTorch's convolution, one weight a call. Contract:

    x           [N, C, H, W] channels_last, fp32, bf16 or fp16
    weight      P tensors [O, C, k, k], transposed [C, O, k, k],
    in the dtype of x or fp32 (rounded for each use)
    bias        none, or P tensors [O] in the dtype of x or fp32
    out         [N, O, H', W'] channels_last in the dtype of x; sums in fp32
    backward    saves x, mean and rstd [N, C] of the norm,
    weights and biases as given; y too with ``recompute=False``
    refused     kernels over 7, strides over 2, padding of the kernel's size or more, dilation, groups
                (see ``serves``); double backward

A transposed convolution is the adjoint of a strided one with the same weight, so one product serves the
forward of the one and the input gradient of the other. README.md beside this file derives the three products.
The kernels are in zero_conv_triton.py, tiles, launches and passes in zero_conv_launch.py. Internal to the
package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_pixels, check_tensor
from ._fallback import backward_in_place
from ._layout import channels_last
from ._operator import operator, refuse_double_backward
from ._overlap import beside
from ._weight_gradients import each_weight, gradients_to_add_to, spread, spread_bias
from .dispatch import DTYPES
from .instance_norm import ACTS, instance_norm_ref


def zero_conv_ref(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    *,
    stride: int,
    padding: int,
    transposed: bool = False,
    output_padding: int = 0,
    norm: bool = False,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
) -> Tensor:
    """The specification, in plain PyTorch."""
    y = instance_norm_ref(x, eps=eps, act=act, slope=slope) if norm else x

    def conv(y: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        w, b = w.to(x.dtype), b if b is None else b.to(x.dtype)
        return (
            F.conv_transpose2d(y, w, b, stride, padding, output_padding)
            if transposed
            else F.conv2d(y, w, b, stride, padding)
        )

    return torch.cat([conv(*one) for one in each_weight(y, weight, list(bias) or [None] * len(weight))])


def serves(
    x_channels: int,
    weight_shape: Sequence[int],
    stride: int,
    padding: int,
    transposed: bool,
    output_padding: int,
) -> bool:
    """Return whether the kernels have this convolution, of a weight [O, C, k, k] (transposed: [C, O, k,
    k])."""
    if len(weight_shape) != 4 or weight_shape[2] != weight_shape[3] or min(weight_shape) < 1:
        return False
    fits = 1 <= weight_shape[2] <= 7 and stride in (1, 2) and 0 <= padding < weight_shape[2]
    return (
        fits
        and weight_shape[0 if transposed else 1] == x_channels
        and 0 <= output_padding < (stride if transposed else 1)
    )


def _out_shape(
    x: Tensor, weight: Sequence[Tensor], stride: int, padding: int, transposed: bool, output_padding: int
) -> tuple[int, int, int, int]:
    first, (N, _, *sides) = weight[0], x.shape
    k = first.shape[2]
    if transposed:
        h, w = ((side - 1) * stride - 2 * padding + k + output_padding for side in sides)
        return N, first.shape[1], h, w
    h, w = ((side + 2 * padding - k) // stride + 1 for side in sides)
    return N, first.shape[0], h, w


# --- Operators ----------------------------------------------------------------------------------------------

_CONV = "int stride, int padding, bool transposed"
_NORM = "bool norm, float eps, str act, float slope"


@operator(
    f"(Tensor x, Tensor[] weight, Tensor[] bias, {_CONV}, int output_padding, {_NORM}, bool recompute, bool"
    " required) -> (Tensor, Tensor, Tensor, Tensor)"
)
def zero_conv_fwd(
    x: Tensor,
    weight: list[Tensor],
    bias: list[Tensor],
    stride: int,
    padding: int,
    transposed: bool,
    output_padding: int,
    norm: bool,
    eps: float,
    act: str,
    slope: float,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the convolution's output, mean and rstd [N, C] (empty without norm), and y (empty where there is
    none or it is recomputed).
    """
    from . import instance_norm_launch
    from . import zero_conv_launch as host
    from ._weights import stacked

    y, mean, rstd = x, x.new_empty(0, dtype=torch.float32), x.new_empty(0, dtype=torch.float32)
    if norm:
        y, mean, rstd = instance_norm_launch.forward(x, None, None, None, eps, act, slope)
    form = host.Form.of(weight[0], stride, padding, transposed)
    size = _out_shape(x, weight, stride, padding, transposed, output_padding)[2:]
    out = host.forward(y, stacked(weight, x.dtype), bias, form, size)
    return out, mean, rstd, y if norm and not recompute else x.new_empty(0)


@zero_conv_fwd.register_fake
def _(
    x: Tensor,
    weight: list[Tensor],
    bias: Any,
    stride: int,
    padding: int,
    transposed: bool,
    output_padding: int,
    norm: bool,
    *rest: Any,
) -> tuple[Tensor, ...]:
    shape = _out_shape(x, weight, stride, padding, transposed, output_padding)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    mean, rstd = (x.new_empty(x.shape[:2] if norm else (0,), dtype=torch.float32) for _ in range(2))
    return out, mean, rstd, torch.empty_like(x) if norm and not rest[-2] else x.new_empty(0)


@operator(
    f"(Tensor g, Tensor x, Tensor mean, Tensor rstd, Tensor[] weight, Tensor y, {_CONV}, float eps, str act,"
    " float slope, bool[] needs, bool required) -> (Tensor, Tensor, Tensor)"
)
def zero_conv_bwd(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: list[Tensor],
    y: Tensor,
    stride: int,
    padding: int,
    transposed: bool,
    eps: float,
    act: str,
    slope: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx, dweight [R, *, *, k, k] of those R weights that need one, and dbias [P, O].

    ``needs``: of x, of the bias, and of each weight. What is not wanted is empty. mean is empty without norm,
    y where it is recomputed.
    """
    from ._weights import empty_gradients

    dweight = empty_gradients(weight, needs[2:])
    dx, dbias = backward(
        g, x, mean, rstd, weight, y, stride, padding, transposed, eps, act, slope, needs, list(dweight), False
    )
    return dx, dweight, dbias


def backward(
    g: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Sequence[Tensor],
    y: Tensor,
    stride: int,
    padding: int,
    transposed: bool,
    eps: float,
    act: str,
    slope: float,
    needs: Sequence[bool],
    into: Sequence[Tensor],
    accumulate: bool,
) -> tuple[Tensor, Tensor]:
    """The backward pass, weight gradients written (or added) to ``into``; see ``zero_conv_bwd``. Returns dx
    and dbias.
    """
    from . import instance_norm_launch
    from . import zero_conv_launch as host
    from ._weights import stacked

    norm, g = mean.dim() == 2, channels_last(g)
    recompute = norm and y.dim() == 1 and any(needs[2:])
    dx, form = x.new_empty(0), host.Form.of(weight[0], stride, padding, transposed)
    fine = host.fine_gradient(g, form) if needs[0] or any(needs[2:]) else None
    if needs[0]:
        dx = host.input_gradient(g, fine, stacked(weight, x.dtype), (x.shape[2], x.shape[3]), form)
        if norm:
            y = torch.empty_like(x) if recompute else y
            written = y if recompute else None
            dx, _ = instance_norm_launch.backward(dx, x, None, None, mean, rstd, act, slope, y=written)
    elif recompute:
        y = instance_norm_launch.forward(x, None, None, None, eps, act, slope)[0]
    if any(needs[2:]):
        source = y if norm else x
        read = (g, source) if fine is None else (g, source, fine.pixels.data)
        with beside(*read) if accumulate else contextlib.nullcontext():
            host.weight_gradients(g, fine, source, form, weight, needs[2:], into, accumulate)
    return dx, host.bias_gradient(g, len(weight)) if needs[1] else x.new_empty(0, dtype=torch.float32)


@zero_conv_bwd.register_fake
def _(
    g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: list[Tensor], *rest: Any
) -> tuple[Tensor, ...]:
    from ._weights import empty_gradients

    needs = rest[-2]
    dbias = x.new_empty((len(weight), g.shape[1]) if needs[1] else (0,), dtype=torch.float32)
    return torch.empty_like(x) if needs[0] else x.new_empty(0), empty_gradients(weight, needs[2:]), dbias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, stride, padding, transposed, _, _, eps, act, slope, _, ctx.required = inputs
    _, mean, rstd, y = output
    ctx.mark_non_differentiable(mean, rstd, y)
    ctx.set_materialize_grads(False)
    ctx.options, ctx.count = (stride, padding, transposed, eps, act, slope), len(weight)
    ctx.save_for_backward(x, mean, rstd, y, *weight, *bias)


def _backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Any, ...]:
    if g is None:
        return (None,) * 13
    x, mean, rstd, y, *weight = ctx.saved_tensors
    weight, bias = weight[: ctx.count], weight[ctx.count :]
    needs_x, needs_w, needs_b = ctx.needs_input_grad[:3]
    needs = [needs_x, any(needs_b), *needs_w]
    stride, padding, transposed, eps, act, slope = ctx.options
    saved = (g, x, mean, rstd, weight, y, stride, padding, transposed, eps, act, slope, needs)
    if (into := gradients_to_add_to(weight, needs_w)) is not None:
        dx, dbias = backward_in_place("zero_conv_bwd", backward, saved, into, ctx.required)
        dweights: list[Tensor | None] = [None] * len(weight)
    else:
        dx, dweight, dbias = torch.ops.fastcyclegan.zero_conv_bwd(*saved, ctx.required)
        dweights = spread(dweight, needs_w)
    return (dx if needs_x else None, dweights, spread_bias(dbias, bias, needs_b), *(None,) * 10)


zero_conv_fwd.register_autograd(_backward, setup_context=_setup)
zero_conv_bwd.register_autograd(refuse_double_backward("zero_conv"))


# --- The function -------------------------------------------------------------------------------------------


def _check_alike(name: str, x: Tensor, tensors: Sequence[Tensor]) -> None:
    for t in tensors:
        if t.shape != tensors[0].shape:
            raise ValueError(
                f"zero_conv: the tensors in {name} must have one shape, got {list(tensors[0].shape)} and"
                f" {list(t.shape)}"
            )
        if t.dtype not in (x.dtype, torch.float32) or t.dtype != tensors[0].dtype:
            raise TypeError(
                f"zero_conv: {name} must be {x.dtype} (as x) or torch.float32, all alike, got {t.dtype}"
            )
        if t.device != x.device:
            raise ValueError(f"zero_conv: {name} must be on the device of x, {x.device}, got {t.device}")


def _check(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    norm: bool,
    act: str,
    conv: tuple[int, int, bool, int],
) -> None:
    stride, padding, transposed, output_padding = conv
    check_tensor("zero_conv", x)
    if x.dtype not in DTYPES:
        raise TypeError(f"zero_conv: x must be float32, bfloat16 or float16, got {x.dtype}")
    if x.dim() != 4:
        raise ValueError(f"zero_conv: x must be [N, C, H, W], got shape {tuple(x.shape)}")
    if not weight or x.shape[0] % len(weight):
        raise ValueError(
            f"zero_conv: x must have a multiple of as many images as there are weights, got {x.shape[0]} for"
            f" {len(weight)}"
        )
    _check_alike("weight", x, weight)
    _check_alike("bias", x, bias)
    if not serves(x.shape[1], weight[0].shape, *conv):
        wanted = f"[{x.shape[1]}, O, k, k]" if transposed else f"[O, {x.shape[1]}, k, k]"
        raise ValueError(
            f"zero_conv: weight must be {wanted}, k at most 7, with a stride of 1 or 2, a padding below k and"
            f" an output_padding below the stride, got {list(weight[0].shape)}, {stride}, {padding} and"
            f" {output_padding}"
        )
    shape = _out_shape(x, weight, *conv)
    if min(shape[2:]) < 1:
        raise ValueError(
            f"zero_conv: x must be no smaller than the kernel, got shape {tuple(x.shape)}, which gives"
            f" {list(shape)}"
        )
    if bias and (len(bias) != len(weight) or bias[0].shape != (shape[1],)):
        raise ValueError(
            f"zero_conv: bias must be {len(weight)} tensors [{shape[1]}] or none, got {len(bias)} of"
            f" {list(bias[0].shape)}"
        )
    if act not in ACTS or (act != "none" and not norm):
        raise ValueError(
            f"zero_conv: act must be one of {', '.join(ACTS)}, and none without norm, got {act!r}"
        )


def zero_conv(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    *,
    stride: int,
    padding: int,
    transposed: bool = False,
    output_padding: int = 0,
    norm: bool = False,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
    recompute: bool = True,
    required: bool = True,
) -> Tensor:
    """Return the zero-padded convolution (or conv_transpose) of act(IN(x)), or of x without ``norm``, [N, O,
    H', W'] in channels_last.

    x: [N, C, H, W]; channels_last is read as it is, another layout is copied once. ``weight``: P tensors,
    ``bias``: P or none; see the module. ``recompute``: the backward computes y again, else it is kept.
    ``required``: a kernel that fails raises KernelError, else PyTorch computes it. Raises ValueError for a
    shape or option that does not fit and TypeError for a dtype, by name.
    """
    conv = (stride, padding, transposed, output_padding)
    _check(x, weight, bias, norm, act, conv)
    if norm:
        check_pixels(x)
    arguments = (
        channels_last(x),
        list(weight),
        list(bias),
        *conv,
        norm,
        eps,
        act,
        slope,
        recompute,
        required,
    )
    return torch.ops.fastcyclegan.zero_conv_fwd(*arguments)[0]
