"""Instance norm fused with an activation and a residual sum, in any memory layout.

    y = act((x - mean) / sqrt(var + eps) * weight + bias) + residual

mean and var (biased) are computed over the pixels of each image and channel. One pass computes these
statistics, and another one computes everything else.

The backward saves x and two vectors [N, C] (mean and 1 / sigma); the activation's mask and x-hat are
recomputed from x. README.md beside this file derives both passes and counts the bytes that must move. The
kernels are in instance_norm_triton.py; their tiles and launches are in instance_norm_launch.py.

Source: Ulyanov, Vedaldi, Lempitsky, "Instance Normalization", 2016.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_device, check_pixels, check_tensor, check_vectors
from ._layout import dense, like
from ._norm import Norm, affine_gradients, empty_statistics
from ._operator import operator, refuse_double_backward
from .dispatch import resolve_impl

ACTS = ("none", "relu", "leaky_relu")


def instance_norm_ref(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute ``instance_norm`` in plain PyTorch. This is the reference that the kernels must match.

    16-bit input is computed in fp32 and rounded once.
    """
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    pixels = list(range(2, x.dim()))
    if x.shape[0] > 0:
        var, mean = torch.var_mean(wide, dim=pixels, correction=0, keepdim=True)
    else:  # an empty batch, for which torch warns
        var = mean = wide.sum(pixels, keepdim=True)
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    y = (wide - mean) * torch.rsqrt(var + eps)
    if weight is not None:
        y = y * weight.view(per_channel)
    if bias is not None:
        y = y + bias.view(per_channel)
    if act == "relu":
        y = F.relu(y)
    elif act == "leaky_relu":
        y = F.leaky_relu(y, slope)
    if residual is not None:
        y = y + residual
    return y.to(x.dtype)


# --- Operators ----------------------------------------------------------------------------------------------


def _check_dimensions(x: Tensor) -> None:
    check_tensor("instance_norm", x)
    if x.dim() not in (3, 4, 5):
        raise ValueError(
            f"instance_norm: x must be [N, C, L], [N, C, H, W] or [N, C, D, H, W], got shape {tuple(x.shape)}"
        )


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, act: str) -> None:
    _check_dimensions(x)
    if act not in ACTS:
        raise ValueError(f"instance_norm: act must be one of {', '.join(ACTS)}, got {act!r}")
    check_pixels(x)
    if x.numel() == 0 and x.shape[0] > 0:
        raise ValueError(f"instance_norm: x must have channels and pixels, got shape {tuple(x.shape)}")
    check_vectors("instance_norm", x, weight, bias)
    if residual is not None:
        _check_residual(residual, x)


def _check_residual(residual: Tensor, x: Tensor) -> None:
    if residual.shape != x.shape:
        raise ValueError(
            f"instance_norm: residual must have the shape of x, {tuple(x.shape)}, got {tuple(residual.shape)}"
        )
    if residual.dtype != x.dtype:
        raise TypeError(f"instance_norm: residual must have the dtype of x, {x.dtype}, got {residual.dtype}")
    check_device("instance_norm", "residual", residual, x)


def _check_call(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> None:
    _check(x, weight, bias, residual, act)


@operator(
    "(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, str act, float slope, bool"
    " required) -> (Tensor, Tensor, Tensor)",
    _check_call,
)
def instance_norm_fwd(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import instance_norm_launch

    if residual is not None:
        residual = like(residual, x)
    return instance_norm_launch.forward(x, Norm(weight, bias, eps, act, slope), residual)


@instance_norm_fwd.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *arguments, _ = others
    _check_call(x, *arguments)
    return torch.empty_like(x), *empty_statistics(x)


@operator(
    "(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, str act, float slope, bool"
    " required) -> (Tensor, Tensor)"
)
def instance_norm_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    act: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """Return dx, and total [2, N, C]: the sums over each image of dz = dy * act'(z) and of dz * x-hat."""
    from . import instance_norm_launch

    norm = Norm(weight, bias, act=act, slope=slope)
    return instance_norm_launch.backward(like(dy, x), x, norm, mean, rstd)


@instance_norm_bwd.register_fake
def _(dy: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((2, *x.shape[:2]), dtype=torch.float32)


def _setup_fwd(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, _, act, slope, ctx.required = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, mean, rstd)
    ctx.act, ctx.slope, ctx.has_residual = act, slope, residual is not None


def _backward(ctx: Any, dy: Tensor | None, _mean: None, _rstd: None) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, rstd = ctx.saved_tensors
    if dy is None:
        return (None,) * 8
    needs = ctx.needs_input_grad
    dx = dweight = dbias = None
    if any(needs[:3]):
        dx, total = instance_norm_bwd(dy, x, weight, bias, mean, rstd, ctx.act, ctx.slope, ctx.required)
        dweight, dbias = affine_gradients(total, Norm(weight, bias), needs[1:3])
    dresidual = dy if ctx.has_residual else None
    return dx, dweight, dbias, dresidual, *(None,) * 4


instance_norm_fwd.register_autograd(_backward, setup_context=_setup_fwd)


instance_norm_bwd.register_autograd(refuse_double_backward("instance_norm"))


# --- The public function ------------------------------------------------------------------------------------


def instance_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
    residual: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Compute act(IN(x)) + residual in one operator: instance norm, scale and shift, activation and sum.

    x: [N, C, H, W], [N, C, L] or [N, C, D, H, W] in fp32, bf16 or fp16 (the reference also accepts fp64); N
    may be 0. channels_last and contiguous memory are read directly, and any other layout is copied once.
    weight, bias: [C] or None, in fp32 or the dtype of x. act: "none", "relu" or "leaky_relu" with negative
    ``slope``. residual: like x, added after the activation. impl: "triton", "cpp", "reference"
    (plain PyTorch) or "auto", which is Triton on an NVIDIA GPU, the C++ kernels on a CPU that supports them,
    and the reference elsewhere. If a kernel does not
    compile or launch, "auto" warns once and falls back to PyTorch, and "triton" raises KernelError.

    The result has the shape, dtype and layout of x. Statistics and sums are computed in fp32 for every dtype.
    The same input always gives the same bits, and no image's result depends on the other images. For the
    backward, the kernels save x and two vectors [N, C].

    Raises ValueError for an invalid shape, act, device or impl, TypeError for an unsupported dtype, and
    RuntimeError in a double backward through the Triton kernels. A single pixel has no variance, so it raises
    ValueError, as in torch.

    Source: Ulyanov, Vedaldi, Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
    Stylization", 2016.
    """
    _check_dimensions(x)
    chosen = resolve_impl("instance_norm", impl, x)
    if chosen == "reference":
        _check(x, weight, bias, residual, act)
        return instance_norm_ref(x, weight, bias, eps=eps, act=act, slope=slope, residual=residual)
    if chosen == "cpp":
        from .cpu.calls import norm

        _check(x, weight, bias, residual, act)
        return norm(x, Norm(weight, bias, eps, act, slope), residual)
    y, _, _ = torch.ops.fastcyclegan.instance_norm_fwd(
        dense(x), weight, bias, residual, eps, act, slope, impl == "triton"
    )
    return y
