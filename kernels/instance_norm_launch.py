"""Host side of the instance norm kernels: tensor views, tiles, allocation and launches.

Arguments are not checked here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

# Imported so that the kernels are registered.
from . import instance_norm_triton as _device_code  # noqa: F401
from ._launch import Config, chip, launch
from ._norm import Norm, empty_statistics
from ._tiles import View, c_blocks_of, empty_bordered, key_of, scale, small_config, split, tile_configs, tuned

ACTIVATION = {"none": 0, "relu": 1, "leaky_relu": 2}


def packed_shape(x: Tensor) -> tuple[int, int, int]:
    """Return the shape of a gradient of x in the packed layout, [N, (H + 2) (W + 4), C].

    Around the gradient, this layout has margins: two columns of zeros, and sums of rows and columns near the
    edges. README.md describes it.
    """
    return x.shape[0], (x.shape[2] + 2) * (x.shape[3] + 4), x.shape[1]


def _flags(norm: Norm) -> dict[str, Any]:
    return {
        "ACT": ACTIVATION[norm.act],
        "HAS_WEIGHT": norm.weight is not None,
        "HAS_BIAS": norm.bias is not None,
    }


def _without_spills(configs: list[Config], affine: bool) -> list[Config]:
    """Return ``configs``, without those that spill registers if the norm is ``affine``.

    The weights of an affine norm take registers in addition to 128 partial sums. Tiles of four warps then
    spill 8 bytes (on sm_80 with Triton 3.7, on sm_90 with 3.6 and 3.9). If no configuration has more than
    four warps, all of them are returned.
    """
    if not affine:
        return configs
    larger = [config for config in configs if config.num_warps > 4]
    return larger if larger else configs


@dataclass(frozen=True)
class Moments:
    """Partial moments ``part`` [N, 2, T, C]: mean and M2 of T tiles, which have ``rows`` positions each.

    The positions are in lines of length ``pitch``, of which the first W are pixels. If ``pitch`` is 0, all
    positions are pixels.
    """

    part: Tensor
    rows: int
    pitch: int = 0


def moments(x: Tensor) -> Moments:
    """Compute the partial moments of x: the mean and M2 of each of its tiles."""
    view = View.of(x)

    def run(config: Config) -> Moments:
        c_blocks = c_blocks_of(view, config)
        tiles, iters = split(view.S, config, c_blocks, scale().max_tiles)
        part = x.new_empty((view.N, 2, tiles, view.C), dtype=torch.float32)
        args = (x, part, iters, tiles, view.S, view.C)
        launch("_instance_norm_stats_kernel", view.N * c_blocks * tiles, args, {}, config)
        return Moments(part, iters * config.constants["BLOCK_S"])

    per_thread = 32
    if view.planar and chip(x.device).capability >= 120:
        # With fp32 planes and larger tiles, Triton 3.9 spills 8 bytes on Blackwell's consumer chips.
        per_thread = 8
    partial: Moments = tuned("stats", key_of(view, x), tile_configs(view, per_thread), x, run)
    return partial


def forward(
    x: Tensor, norm: Norm, residual: Tensor | None = None, border: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute y = act(IN(x)) + residual, with ``border`` reflected pixels on each side.

    Returns y [N, C, H + 2 border, W + 2 border], and mean and rstd [N, C] in fp32. If ``border`` is 0, x can
    have any number of dimensions.
    """
    view = View.of(x)
    y = empty_bordered(x, border)
    mean, rstd = empty_statistics(x)
    if x.numel() == 0:  # an empty batch, whose images may have no pixels
        return y, mean, rstd
    small = small_config(view) if border == 0 else None
    if small is None:
        apply(x, moments(x), (y, mean, rstd), norm, residual, border)
        return y, mean, rstd
    flags = {**_flags(norm), "RESIDUAL": residual is not None, "PLANAR": view.planar}
    inputs = (x, norm.weight, norm.bias, residual)
    args = (*inputs, y, mean, rstd, view.S, view.C, view.channels, norm.eps, norm.slope)
    launch("_instance_norm_small_fwd_kernel", view.N * c_blocks_of(view, small), args, flags, small)
    return y, mean, rstd


def apply(
    x: Tensor,
    moments: Moments,
    outputs: tuple[Tensor, Tensor, Tensor],
    norm: Norm,
    residual: Tensor | None = None,
    border: int = 0,
) -> None:
    """Normalise x with its partial ``moments``, and write y, mean and rstd to ``outputs``.

    y is act(IN(x)) + residual, with ``border`` reflected pixels on each side.
    """
    view, part = View.of(x), moments.part
    flags = {**_flags(norm), "RESIDUAL": residual is not None, "PLANAR": view.planar}
    H, W = view.lines(border, moments.pitch)
    pitch = moments.pitch if moments.pitch else W

    def run(config: Config) -> None:
        c_blocks = c_blocks_of(view, config)
        tiles, iters = split((H + 2 * border) * (W + 2 * border), config, c_blocks, 1 << 30)
        sizes = (iters, tiles, part.shape[2], moments.rows, pitch, H, W, view.C, view.channels)
        args = (x, part, norm.weight, norm.bias, residual, *outputs, *sizes, norm.eps, norm.slope)
        constants = {**flags, "BORDER": border, "BLOCK_T": triton.next_power_of_2(part.shape[2])}
        launch("_instance_norm_apply_kernel", view.N * c_blocks * tiles, args, constants, config)

    configs = _without_spills(tile_configs(view, 16), norm.weight is not None)
    tuned("apply", key_of(view, x, norm.act, residual is not None, border), configs, x, run)


def whole_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance [C] of x [1, C, H, W] in fp32, joined in fp64."""
    partial, pixels = moments(x), x.shape[2] * x.shape[3]
    mean, squares = partial.part[0].double()
    starts = torch.arange(mean.shape[0], device=x.device, dtype=torch.float64)[:, None] * partial.rows
    counts = (pixels - starts).clamp(0, partial.rows)
    total = (counts * mean).sum(0) / pixels
    squares = squares + counts * (mean - total).square()
    return total.float(), (squares.sum(0) / pixels).float()


def with_statistics(
    x: Tensor, norm: Norm, mean: Tensor, variance: Tensor, residual: Tensor | None = None
) -> Tensor:
    """Return act(norm(x)) + residual for x [1, C, H, W], whose ``mean`` and ``variance`` [C] are given."""
    view, y = View.of(x), torch.empty_like(x)
    # What one tile with all pixels would have found.
    part = torch.stack([mean, variance * view.S]).view(1, 2, 1, view.C)
    apply(x, Moments(part, view.S), (y, *empty_statistics(x)), norm, residual)
    return y


@dataclass(frozen=True)
class Extras:
    """Additional inputs and outputs of the backward pass.

    ``dy_border`` is the width of the border (already folded) inside which dy is stored. If ``y`` is given,
    act(IN(x)) is written to it again, with ``y_border`` reflected pixels on each side. If ``copy`` is given
    too, this image, which is like x, is written to ``y`` instead of act(IN(x)). If ``margins`` is true, dx is
    written in the packed layout (see ``packed_shape``). ``dx`` is the tensor to which dx is written; if it is
    None, one is allocated.
    """

    dy_border: int = 0
    y_border: int = 0
    margins: bool = False
    copy: Tensor | None = None
    y: Tensor | None = None
    dx: Tensor | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return self.dy_border, self.y_border, self.margins, self.copy is not None


# dy, x, weight, bias, mean and rstd.
Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor, Tensor]


def backward(
    dy: Tensor, x: Tensor, norm: Norm, mean: Tensor, rstd: Tensor, extras: Extras = Extras()
) -> tuple[Tensor, Tensor]:
    """Run the backward pass of an instance norm, and return dx and total.

    ``total`` [2, N, C] holds the sums of dz and of dz * x-hat for each image and channel.
    """
    view = View.of(x)
    dx = extras.dx
    if dx is None:
        dx = x.new_empty(packed_shape(x)) if extras.margins else torch.empty_like(x)
    total = x.new_empty((2, *x.shape[:2]), dtype=torch.float32)
    if x.numel() == 0:
        return dx, total
    inputs = (dy, x, norm.weight, norm.bias, mean, rstd)
    small = small_config(view) if extras.y is None and not any(extras.key) else None
    if small is None:
        sums = _bwd_sums(inputs, view, norm, extras)
        _bwd_apply(inputs, sums, (dx, extras.y, total), view, norm, extras)
        return dx, total
    flags = {**_flags(norm), "PLANAR": view.planar}
    args = (*inputs, dx, total, mean.numel(), view.S, view.C, view.channels, norm.slope)
    launch("_instance_norm_small_bwd_kernel", view.N * c_blocks_of(view, small), args, flags, small)
    return dx, total


def _bwd_sums(inputs: Inputs, view: View, norm: Norm, extras: Extras) -> Tensor:
    x = inputs[1]
    flags = {**_flags(norm), "PLANAR": view.planar}
    H, W = view.lines(extras.dy_border)

    def run(config: Config) -> Tensor:
        c_blocks = c_blocks_of(view, config)
        tiles, iters = split(view.S, config, c_blocks, scale().max_tiles)
        sums = x.new_empty((view.N, 2, tiles, view.C), dtype=torch.float32)
        args = (*inputs, sums, iters, tiles, H, W, view.C, view.channels, norm.slope)
        constants = {**flags, "DY_BORDER": extras.dy_border}
        launch("_instance_norm_bwd_sums_kernel", view.N * c_blocks * tiles, args, constants, config)
        return sums

    key = key_of(view, x, *flags.values(), extras.dy_border)
    # The kernel reads two tensors and accumulates two sums, so it needs few elements per thread and many
    # threads.
    sums: Tensor = tuned("bwd_sums", key, tile_configs(view, 8), x, run)
    return sums


def _bwd_apply(
    inputs: Inputs,
    sums: Tensor,
    outputs: tuple[Tensor, Tensor | None, Tensor],
    view: View,
    norm: Norm,
    extras: Extras,
) -> None:
    x, recompute = inputs[1], extras.y is not None
    flags = {**_flags(norm), "PLANAR": view.planar}
    H, W = view.lines(extras.dy_border, extras.y_border, extras.margins)
    tiles_in = sums.shape[2]

    def run(config: Config) -> None:
        c_blocks = c_blocks_of(view, config)
        main, iters = split((H + 2 * extras.y_border) * (W + 2 * extras.y_border), config, c_blocks, 1 << 30)
        margin = 2 * H + 2 * (W + 2) + 2 * (H + 2) if extras.margins else 0
        tiles = main + triton.cdiv(margin, iters * config.constants["BLOCK_S"])
        sizes = (view.N * view.C, iters, main, tiles, tiles_in, H, W, view.C, view.channels, norm.slope)
        constants = {
            **flags,
            "DY_BORDER": extras.dy_border,
            "Y_BORDER": extras.y_border,
            "RECOMPUTE": recompute,
            "COPY": extras.copy is not None,
            "MARGINS": extras.margins,
            "BLOCK_T": triton.next_power_of_2(tiles_in),
        }
        args = (*inputs, sums, extras.copy, *outputs, *sizes)
        launch("_instance_norm_bwd_apply_kernel", view.N * c_blocks * tiles, args, constants, config)

    configs = _without_spills(tile_configs(view, 16), flags["HAS_WEIGHT"] and recompute)
    tuned("bwd_apply", key_of(view, x, *flags.values(), recompute, *extras.key), configs, x, run)
