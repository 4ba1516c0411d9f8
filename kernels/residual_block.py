"""The residual block of CycleGAN's generator as one autograd node: two reflection-padded 3x3 convolutions,
each followed by instance norm.

    c1 = conv(x, weight1);  c2 = conv(relu(IN(c1)), weight2);  out = x + IN(c2)

Source: Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV
2016, supplement; without the biases, which the norms take out again, and without affine parameters. Saved for
the backward: x, c1, c2 and four vectors [N, C].

Forward, 4 launches: convolution 1 with the statistics of what it stores; norm + ReLU, which writes its
reflected border; convolution 2, likewise; norm + sum. Backward, 8 launches: two passes of norm 2, the second
writing d c2 with its margins, and beside it x with its border; input gradient 2; two passes of norm 1, the
second writing d c1 with its margins and relu(IN(c1)) with its border again; input gradient 1, which adds the
upstream gradient; both weight gradients in one product, and the sum of its parts. README.md has the layouts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import check_padding, check_pixels, check_tensor, check_weights, tensors_of, under_autocast
from ._fallback import backward_in_place
from ._layout import channels_last
from ._operator import operator, refuse_double_backward
from ._overlap import beside
from ._weight_gradients import gradients_to_add_to, spread
from .dispatch import resolve_impl
from .instance_norm import instance_norm_ref
from .reflect_conv import reflect_conv2d_ref


def residual_block_ref(
    x: Tensor, weight1: Tensor | Sequence[Tensor], weight2: Tensor | Sequence[Tensor], *, eps: float = 1e-5
) -> Tensor:
    """The specification, in plain PyTorch."""
    y = instance_norm_ref(reflect_conv2d_ref(x, weight1, padding=1), eps=eps, act="relu")
    return instance_norm_ref(reflect_conv2d_ref(y, weight2, padding=1), eps=eps, residual=x)


@operator(
    "(Tensor x, Tensor[] weight1, Tensor[] weight2, float eps, bool required) -> (Tensor, Tensor, Tensor,"
    " Tensor, Tensor, Tensor, Tensor)"
)
def residual_block_fwd(
    x: Tensor, weight1: list[Tensor], weight2: list[Tensor], eps: float
) -> tuple[Tensor, ...]:
    """Return out, c1, c2, and mean and rstd [N, C] of c1 and of c2."""
    from ._products import REFLECT, Options, product_and_moments
    from ._tiles import empty_bordered
    from ._weights import stacked
    from .border_launch import Pixels
    from .instance_norm_launch import apply

    size = (x.shape[2], x.shape[3])
    mean1, rstd1, mean2, rstd2 = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(4))
    y, out = empty_bordered(x, 1), torch.empty_like(x)
    c1, moments = product_and_moments(
        Pixels.of(x), stacked(weight1, x.dtype), size, Options(REFLECT, 1, size)
    )
    apply(c1, moments, (y, mean1, rstd1), None, None, None, eps, "relu", 0.0, 1)
    c2, moments = product_and_moments(Pixels.of(y), stacked(weight2, x.dtype), size)
    apply(c2, moments, (out, mean2, rstd2), None, None, x, eps, "none", 0.0, 0)
    return out, c1, c2, mean1, rstd1, mean2, rstd2


@residual_block_fwd.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    vectors = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(4))
    return (*(torch.empty_like(x) for _ in range(3)), *vectors)


@operator(
    "(Tensor g, Tensor x, Tensor c1, Tensor c2, Tensor mean1, Tensor rstd1, Tensor mean2, Tensor rstd2, "
    "Tensor[] weight1, Tensor[] weight2, bool[] needs, bool required) -> (Tensor, Tensor)"
)
def residual_block_bwd(
    g: Tensor,
    x: Tensor,
    c1: Tensor,
    c2: Tensor,
    mean1: Tensor,
    rstd1: Tensor,
    mean2: Tensor,
    rstd2: Tensor,
    weight1: list[Tensor],
    weight2: list[Tensor],
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    """Return dx (empty if not wanted) and dweight [R, C, C, 3, 3] of those R weights that need one,
    ``weight1`` first.

    ``needs``: of x, then of each weight.
    """
    from ._weights import empty_gradients

    dweight = empty_gradients([*weight1, *weight2], needs[1:])
    saved = (x, c1, c2, mean1, rstd1, mean2, rstd2)
    return *backward(g, *saved, weight1, weight2, needs, list(dweight), False), dweight


def backward(
    g: Tensor,
    x: Tensor,
    c1: Tensor,
    c2: Tensor,
    mean1: Tensor,
    rstd1: Tensor,
    mean2: Tensor,
    rstd2: Tensor,
    weight1: Sequence[Tensor],
    weight2: Sequence[Tensor],
    needs: Sequence[bool],
    into: Sequence[Tensor],
    accumulate: bool,
) -> tuple[Tensor]:
    """The backward pass, weight gradients written (or added) to ``into``; see ``residual_block_bwd``. Returns
    dx.
    """
    from ._products import FOLDED, Options, product
    from ._weights import stacked
    from .border_launch import Pixels
    from .instance_norm_launch import Extras, packed_shape
    from .instance_norm_launch import backward as norm_backward
    from .reflect_conv_passes import weight_gradients

    N, C, H, W = x.shape
    weights = [*weight1, *weight2]
    g, size, wanted = channels_last(g.to(x.dtype)), (H, W), any(needs[1:])
    # Both convolutions' gradients and inputs lie one after the other, so that their weight gradients are one
    # product.
    dc = x.new_empty((2, *packed_shape(x)))
    inputs = x.new_empty((2, N, (H + 2) * (W + 2), C) if wanted else (2, 0))

    def packed(i: int, count: int) -> Pixels:
        rows = dc.shape[2]
        return Pixels(dc[i : i + count], count * N, rows, W + 2, rows, C)

    def gradient(i: int, residual: Tensor | None = None) -> Tensor:
        weight = stacked((weight1, weight2)[i], x.dtype)
        return product(packed(i, 1), weight, size, Options(FOLDED, transposed=True, residual=residual))

    border = int(wanted)
    extras = Extras(y_border=border, margins=True, copy=x if wanted else None)
    norm_backward(g, c2, None, None, mean2, rstd2, "none", 0.0, extras, inputs[0] if wanted else None, dc[1])
    dy = gradient(1)
    extras = Extras(y_border=border, margins=True)
    norm_backward(dy, c1, None, None, mean1, rstd1, "relu", 0.0, extras, inputs[1] if wanted else None, dc[0])
    dx = gradient(0, residual=g) if needs[0] else x.new_empty(0)
    if wanted:
        rows = (H + 2) * (W + 2)
        with beside(dc, inputs) if accumulate else contextlib.nullcontext():
            weight_gradients(
                packed(0, 2),
                Pixels(inputs, 2 * N, rows, W + 2, rows, C),
                H,
                weights,
                needs[1:],
                into,
                accumulate,
            )
    return (dx,)


@residual_block_bwd.register_fake
def _(g: Tensor, x: Tensor, *rest: Any) -> Any:
    from ._weights import empty_gradients

    *_, weight1, weight2, needs, _ = rest
    return torch.empty_like(x) if needs[0] else x.new_empty(0), empty_gradients(
        [*weight1, *weight2], needs[1:]
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight1, weight2, _, ctx.required = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.count = len(weight1)
    ctx.save_for_backward(x, *output[1:], *weight1, *weight2)


def _backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Any, ...]:
    if g is None:
        return (None,) * 5
    # Once: a checkpoint allows no second time.
    tensors = ctx.saved_tensors
    weights = tensors[7:]
    needs_x, needs_1, needs_2 = ctx.needs_input_grad[:3]
    needs = [needs_x, *needs_1, *needs_2]
    saved = (g, *tensors[:7], list(weights[: ctx.count]), list(weights[ctx.count :]), needs)
    if (into := gradients_to_add_to(weights, needs[1:])) is not None:
        (dx,) = backward_in_place("residual_block_bwd", backward, saved, into, ctx.required)
        dweights: list[Tensor | None] = [None] * len(weights)
    else:
        dx, dweight = torch.ops.fastcyclegan.residual_block_bwd(*saved, ctx.required)
        dweights = spread(dweight, needs[1:])
    return dx if needs_x else None, dweights[: ctx.count], dweights[ctx.count :], None, None


residual_block_fwd.register_autograd(_backward, setup_context=_setup)
residual_block_bwd.register_autograd(refuse_double_backward("residual_block"))


def residual_block(
    x: Tensor,
    weight1: Tensor | Sequence[Tensor],
    weight2: Tensor | Sequence[Tensor],
    *,
    eps: float = 1e-5,
    impl: str = "auto",
) -> Tensor:
    """Return x + IN(conv(relu(IN(conv(x, weight1))), weight2)), the convolutions 3x3 and padded by
    reflection.

    x: [N, C, H, W], H and W at least 2; channels_last memory is read as it is, another layout is copied once.
    The result is laid out in channels_last, in the dtype of x. weight1, weight2: [C, C, 3, 3] in the dtype of
    x or fp32, which is then rounded for the use; or two lists of P of them, N a multiple of P: image n uses
    weights n // (N / P). Under autocast x is cast as for PyTorch's convolutions. Sums and statistics are
    fp32; products of fp32 as in ``reflect_conv2d``. impl: "triton", "reference", or "auto": Triton on an
    NVIDIA GPU, the reference elsewhere. Where a kernel does not compile or launch, "auto" warns once and
    PyTorch computes it, and "triton" raises KernelError.

    The backward saves x, the two convolutions' outputs, and four vectors [N, C]. Same input, same bits.
    Raises ValueError for a shape, device or impl that does not fit, TypeError for a dtype, and RuntimeError
    in a double backward through the kernels.

    Source: Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution",
    ECCV 2016, supplement.
    """
    check_tensor("residual_block", x)
    if not isinstance(eps, (int, float)):
        raise TypeError(f"residual_block: eps must be a number, got {type(eps).__name__}")
    lists = [
        tensors_of("residual_block", name, given)
        for name, given in (("weight1", weight1), ("weight2", weight2))
    ]
    x, *lists = under_autocast(x, *lists)
    for name, weights in zip(("weight1", "weight2"), lists, strict=True):
        check_weights("residual_block", name, x, weights)
        wanted = [x.shape[1], x.shape[1], 3, 3]
        if list(weights[0].shape) != wanted:
            raise ValueError(
                f"residual_block: {name} must be {wanted} for x of {x.shape[1]} channels, got"
                f" {list(weights[0].shape)}"
            )
    if len(lists[0]) != len(lists[1]):
        raise ValueError(
            f"residual_block: weight1 and weight2 must be as many, got {len(lists[0])} and {len(lists[1])}"
        )
    if lists[0][0].dtype != lists[1][0].dtype:
        raise TypeError(
            f"residual_block: weight1 and weight2 must have one dtype, got {lists[0][0].dtype} and"
            f" {lists[1][0].dtype}"
        )
    check_padding("residual_block", x, 1, 3)
    check_pixels(x)
    if resolve_impl("residual_block", impl, x) == "reference":
        return residual_block_ref(x, *lists, eps=eps)
    return torch.ops.fastcyclegan.residual_block_fwd(channels_last(x), *lists, eps, impl == "triton")[0]
