"""The residual block of CycleGAN's generator as one autograd node.

The block has two reflection-padded 3x3 convolutions, each followed by an instance norm:

    c1 = conv(x, weight1);  c2 = conv(relu(IN(c1)), weight2);  out = x + IN(c2)

Source: Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV
2016, supplement. The biases, which the norms cancel, and affine parameters are left out. x, c1, c2 and four
vectors [N, C] are saved for the backward.

The forward takes 4 launches:

1. convolution 1, and the statistics of its output as stored
2. norm 1 and ReLU, written with a reflected border
3. convolution 2, and the statistics of its output as stored
4. norm 2, and the sum with x

The backward takes 8 launches:

1. the first pass of norm 2
2. the second pass of norm 2, which writes d c2 with its margins, and also x with its border
3. the input gradient of convolution 2
4. the first pass of norm 1
5. the second pass of norm 1, which writes d c1 with its margins, and relu(IN(c1)) with its border again
6. the input gradient of convolution 1, to which the upstream gradient is added
7. both weight gradients, as partial sums of one matrix product
8. the sum of these parts

README.md describes the layouts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._calls import ResidualBlockSaved
from ._checks import check_images, check_padding, check_pixels, check_weights, tensors_of, under_autocast
from ._fallback import backward_in_place
from ._layout import channels_last, empty_result
from ._norm import Norm, empty_statistics
from ._operator import operator, refuse_double_backward
from ._overlap import on_side_stream
from ._weight_gradients import gradients_to_add_to, spread
from .dispatch import resolve_impl
from .instance_norm import instance_norm_ref
from .reflect_conv import reflect_conv2d_ref


def residual_block_ref(
    x: Tensor, weight1: Tensor | Sequence[Tensor], weight2: Tensor | Sequence[Tensor], *, eps: float = 1e-5
) -> Tensor:
    """Compute ``residual_block`` in plain PyTorch. This is the reference that the kernels must match."""
    y = instance_norm_ref(reflect_conv2d_ref(x, weight1, padding=1), eps=eps, act="relu")
    return instance_norm_ref(reflect_conv2d_ref(y, weight2, padding=1), eps=eps, residual=x)


def _check_weights(x: Tensor, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    for name, weights in (("weight1", first), ("weight2", second)):
        check_weights("residual_block", name, x, weights)
        C = x.shape[1]
        if weights[0].shape != (C, C, 3, 3):
            raise ValueError(
                f"residual_block: {name} must be {[C, C, 3, 3]} for x with {C} channels, got"
                f" {list(weights[0].shape)}"
            )
    if len(first) != len(second):
        raise ValueError(
            "residual_block: weight1 and weight2 must have the same number of weights, got"
            f" {len(first)} and {len(second)}"
        )
    if first[0].dtype != second[0].dtype:
        raise TypeError(
            f"residual_block: weight1 and weight2 must have the same dtype, got {first[0].dtype} and"
            f" {second[0].dtype}"
        )


def _check(x: Tensor, first: Sequence[Tensor], second: Sequence[Tensor], eps: float) -> None:
    _check_weights(x, first, second)
    check_padding("residual_block", x, 1, 3)
    check_pixels(x)


@operator(
    "(Tensor x, Tensor[] weight1, Tensor[] weight2, float eps, bool required) -> (Tensor, Tensor, Tensor,"
    " Tensor, Tensor, Tensor, Tensor)",
    _check,
)
def residual_block_fwd(
    x: Tensor, weight1: list[Tensor], weight2: list[Tensor], eps: float
) -> tuple[Tensor, ...]:
    """Return the block's output, c1 and c2, mean and rstd [N, C] of c1, and mean and rstd of c2."""
    from ._products import REFLECT, Options, product_and_moments
    from ._tiles import empty_bordered
    from ._weights import stacked
    from .border_launch import Pixels
    from .instance_norm_launch import apply

    size = (x.shape[2], x.shape[3])
    mean1, rstd1 = empty_statistics(x)
    mean2, rstd2 = empty_statistics(x)
    y, out = empty_bordered(x, 1), torch.empty_like(x)
    reflected = Options(REFLECT, 1, size)
    c1, moments = product_and_moments(Pixels.of(x), stacked(weight1, x.dtype), size, reflected)
    apply(c1, moments, (y, mean1, rstd1), Norm(eps=eps, act="relu", slope=0.0), border=1)
    c2, moments = product_and_moments(Pixels.of(y), stacked(weight2, x.dtype), size)
    apply(c2, moments, (out, mean2, rstd2), Norm(eps=eps, act="none", slope=0.0), residual=x)
    return out, c1, c2, mean1, rstd1, mean2, rstd2


@residual_block_fwd.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *arguments, _ = others
    _check(x, *arguments)
    images = (torch.empty_like(x), torch.empty_like(x), torch.empty_like(x))
    return (*images, *empty_statistics(x), *empty_statistics(x))


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
    """Return dx and dweight [R, C, C, 3, 3], the gradients of x and of the R weights that need one.

    dx is empty if it is not needed. The gradients of ``weight1`` come first. ``needs`` has an entry for x,
    then one for each weight.
    """
    from ._weights import empty_gradients

    saved = ResidualBlockSaved(x, c1, c2, mean1, rstd1, mean2, rstd2, weight1, weight2)
    dweight = empty_gradients([*weight1, *weight2], needs[1:])
    (dx,) = backward(g, saved, needs, list(dweight), False)
    return dx, dweight


def backward(
    g: Tensor, saved: ResidualBlockSaved, needs: Sequence[bool], into: Sequence[Tensor], accumulate: bool
) -> tuple[Tensor]:
    """Run the backward pass (see ``residual_block_bwd``) and return (dx,).

    The weight gradients are written to ``into``, or added to it if ``accumulate`` is True.
    """
    from .border_launch import Pixels
    from .instance_norm_launch import packed_shape
    from .reflect_conv_passes import weight_gradients

    x, any_weight = saved.x, any(needs[1:])
    N, C, H, W = x.shape
    g = channels_last(g.to(x.dtype))
    # The gradients of both convolutions are adjacent in memory, and so are their inputs, so that one product
    # computes both weight gradients.
    dc = x.new_empty((2, *packed_shape(x)))
    inputs = x.new_empty((2, N, (H + 2) * (W + 2), C) if any_weight else (2, 0))
    _norm_gradients(g, saved, dc, inputs if any_weight else None)
    dx = _input_gradient(dc[:1], saved.weight1, x, residual=g) if needs[0] else empty_result(x)
    if any_weight:
        weights = [*saved.weight1, *saved.weight2]
        packed, bordered = Pixels.in_lines(dc, W + 2), Pixels.in_lines(inputs, W + 2)
        with on_side_stream(dc, inputs, when=accumulate):
            weight_gradients(packed, bordered, H, weights, needs[1:], into, accumulate)
    return (dx,)


def _norm_gradients(g: Tensor, saved: ResidualBlockSaved, dc: Tensor, inputs: Tensor | None) -> None:
    """Write the gradients of c1 and c2 to ``dc``, in the packed layout.

    If ``inputs`` is given, the inputs of both convolutions are written to it, with their borders.
    """
    from .instance_norm_launch import Extras
    from .instance_norm_launch import backward as norm_backward

    first, second = Extras(margins=True, dx=dc[0]), Extras(margins=True, dx=dc[1])
    if inputs is not None:
        first = dataclasses.replace(first, y_border=1, y=inputs[1])
        second = dataclasses.replace(second, y_border=1, y=inputs[0], copy=saved.x)
    norm = Norm(act="none", slope=0.0)
    norm_backward(g, saved.c2, norm, saved.mean2, saved.rstd2, second)
    dy = _input_gradient(dc[1:], saved.weight2, saved.x)
    norm = Norm(act="relu", slope=0.0)
    norm_backward(dy, saved.c1, norm, saved.mean1, saved.rstd1, first)


def _input_gradient(
    dc: Tensor, weight: Sequence[Tensor], x: Tensor, residual: Tensor | None = None
) -> Tensor:
    """Return the input gradient of the convolution with ``weight``, plus ``residual`` if given.

    The result is like x. dc [1, N, rows, C] is the gradient of the convolution's output in the packed layout.
    """
    from ._products import FOLDED, Options, product
    from ._weights import stacked
    from .border_launch import Pixels

    _, _, H, W = x.shape
    options = Options(FOLDED, transposed=True, residual=residual)
    return product(Pixels.in_lines(dc, W + 2), stacked(weight, x.dtype), (H, W), options)


@residual_block_bwd.register_fake
def _(g: Tensor, *flat: Any) -> tuple[Tensor, Tensor]:
    from ._weights import empty_gradients

    *arguments, needs, _ = flat
    saved = ResidualBlockSaved.of(*arguments)
    dx = torch.empty_like(saved.x) if needs[0] else empty_result(saved.x)
    return dx, empty_gradients([*saved.weight1, *saved.weight2], needs[1:])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight1, weight2, _, ctx.required = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.count = len(weight1)
    ctx.save_for_backward(x, *output[1:], *weight1, *weight2)


def _backward(ctx: Any, g: Tensor | None, *_: None) -> tuple[Any, ...]:
    if g is None:
        return (None,) * 5
    # Read saved_tensors only once, because activation checkpointing does not allow reading it twice.
    tensors = ctx.saved_tensors
    results, weights = tensors[:7], list(tensors[7:])
    saved = ResidualBlockSaved.of(*results, weights[: ctx.count], weights[ctx.count :])
    needs_x, needs_1, needs_2 = ctx.needs_input_grad[:3]
    needs = [needs_x, *needs_1, *needs_2]
    flat = (g, *saved.flat(), needs)
    into = gradients_to_add_to(weights, needs[1:])
    if into is None:
        dx, dweight = torch.ops.fastcyclegan.residual_block_bwd(*flat, ctx.required)
        dweights = spread(dweight, needs[1:])
    else:
        run = functools.partial(backward, g, saved, needs, into, True)
        (dx,) = backward_in_place("residual_block_bwd", run, flat, into, ctx.required)
        dweights = [None] * len(weights)
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
    """Compute x + IN(conv(relu(IN(conv(x, weight1))), weight2)), with 3x3 reflection-padded convolutions.

    x: [N, C, H, W], with H and W at least 2; channels_last memory is read directly, and any other layout is
    copied once. weight1, weight2: [C, C, 3, 3] in the dtype of x or in fp32 (then rounded on use), or two
    lists of P such weights, where N is a multiple of P: image n uses weights n // (N / P). Under autocast, x
    is cast as for PyTorch's convolutions. impl: "triton", "cpp", "reference" or "auto", which is Triton on an
    NVIDIA GPU, the C++ kernels or PyTorch, whichever is faster, on a CPU that supports them, and the
    reference elsewhere. If a kernel does not compile or launch, "auto" warns once and falls back to PyTorch,
    and "triton" raises KernelError.

    The result is in channels_last and in the dtype of x. Sums and statistics are computed in fp32, and fp32
    products as in ``reflect_conv2d``. The same input always gives the same bits. x, the outputs of the two
    convolutions, and four vectors [N, C] are saved for the backward.

    Raises ValueError for an invalid shape, device or impl, TypeError for an unsupported dtype, and
    RuntimeError in a double backward through the Triton kernels.

    Source: Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution",
    ECCV 2016, supplement.
    """
    check_images("residual_block", x)
    if not isinstance(eps, (int, float)):
        raise TypeError(f"residual_block: eps must be a number, got {type(eps).__name__}")
    first = tensors_of("residual_block", "weight1", weight1)
    second = tensors_of("residual_block", "weight2", weight2)
    x, first, second = under_autocast(x, first, second)
    chosen = resolve_impl("residual_block", impl, x)
    if chosen != "triton":
        _check(x, first, second, eps)
    if chosen == "reference":
        return residual_block_ref(x, first, second, eps=eps)
    if chosen == "cpp":
        from .cpu.calls import residual_block as block

        return block(channels_last(x), first, second, eps, required=impl == "cpp")
    required = impl == "triton"
    return torch.ops.fastcyclegan.residual_block_fwd(channels_last(x), first, second, eps, required)[0]
