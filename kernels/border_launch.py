"""Host side of the border kernels: copy images into larger buffers, and apply the adjoint of reflection.

Arguments are not checked here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

# Imported so that the kernels are registered.
from . import border_triton as _device_code  # noqa: F401
from ._launch import Config, launch
from ._layout import empty_channels_last
from ._tiles import INTERPRETER, View, c_blocks_of, empty_bordered, key_of, scale, split, tile_configs, tuned


@dataclass(frozen=True)
class Pixels:
    """N images in the form that convolutions read.

    Pixel i of image n is at element (n ``rows`` + i) ``step`` of ``data``. Lines start ``pitch`` pixels
    apart. Pixels from ``limit`` on are zeros: a read can extend into them but never starts there. ``first``
    is the pixel at which the image itself begins.
    """

    data: Tensor
    N: int
    rows: int
    pitch: int
    limit: int
    step: int
    first: int = 0

    @classmethod
    def of(cls, x: Tensor) -> Pixels:
        """Describe x [N, C, H, W] (channels_last)."""
        N, C, H, W = x.shape
        return cls(x, N, H * W, W, H * W, C)

    @classmethod
    def in_lines(cls, data: Tensor, pitch: int) -> Pixels:
        """Describe ``data`` [..., rows, C], where each [rows, C] is an image in lines of ``pitch`` pixels."""
        *counts, rows, C = data.shape
        return cls(data, math.prod(counts), rows, pitch, rows, C)


def _wide(channels: int, *tensors: Tensor | None) -> bool:
    """Return whether a pixel of ``channels`` channels is a multiple of 16 bytes in all ``tensors``."""
    return all(channels * t.element_size() % 16 == 0 for t in tensors if t is not None)


@dataclass(frozen=True)
class Frame:
    """The position of an image in a larger buffer.

    The buffer has ``lines`` lines of ``pitch`` pixels, followed by ``slack`` zero pixels. The image begins at
    pixel (top, left).
    """

    top: int
    left: int
    lines: int
    pitch: int
    slack: int = 0


def embed(
    x: Tensor,
    frame: Frame,
    *,
    reflect: bool,
    dtype: torch.dtype,
    step: int,
    tanh: Tensor | None = None,
    out: Tensor | None = None,
) -> Pixels:
    """Copy x [N, C, H, W] (channels_last) into a larger buffer, at the position that ``frame`` describes.

    The rest of the frame is filled with the reflection of x if ``reflect`` is true, and with zeros otherwise.
    The buffer has ``step`` >= C channels per pixel, in ``dtype``. If ``tanh`` (shaped like x) is given, the
    copy is multiplied by 1 - tanh^2. The buffer is ``out`` if given, and newly allocated otherwise.
    """
    view = View.of(x)
    rows = frame.lines * frame.pitch + frame.slack
    y = torch.empty((view.N, rows, step), dtype=dtype, device=x.device) if out is None else out
    target = View(view.N, rows, step, step, False, view.H, view.W)
    wide = _wide(view.C, x, y, tanh)

    def run(config: Config) -> None:
        c_blocks = c_blocks_of(target, config)
        tiles, iters = split(rows, config, c_blocks, 1 << 30)
        sizes = (iters, tiles, view.H, view.W, view.C, frame.top, frame.left, frame.lines, frame.pitch, rows)
        constants = {"STEP": step, "REFLECT": reflect, "TANH": tanh is not None, "WIDE": wide}
        launch("_embed_kernel", view.N * c_blocks * tiles, (x, tanh, y, *sizes), constants, config)

    key = key_of(target, y, reflect, tanh is not None)
    tuned("embed", key, tile_configs(target, 32 if tanh is None else 16), y, run)
    limit, first = frame.lines * frame.pitch, frame.top * frame.pitch + frame.left
    return Pixels(y, view.N, rows, frame.pitch, limit, step, first)


def reflect_pad(x: Tensor, border: int) -> Tensor:
    """Pad x [N, C, H, W] (channels_last) with ``border`` reflected pixels on each side."""
    y = empty_bordered(x, border)
    _, C, HP, WP = y.shape
    embed(x, Frame(border, border, HP, WP), reflect=True, dtype=x.dtype, step=C, out=y)
    return y


def fold(dy: Tensor, border: int) -> Tensor:
    """Return the gradient of an image, given ``dy``, the gradient of the same image with a reflected border.

    dy is [N, C, H + 2b, W + 2b], and the result is [N, C, H, W]. Both are channels_last.
    """
    shape = (dy.shape[0], dy.shape[1], dy.shape[2] - 2 * border, dy.shape[3] - 2 * border)
    x = empty_channels_last(dy, shape)
    view = View(shape[0], shape[2] * shape[3], shape[1], shape[1], False, shape[2], shape[3])
    wide = _wide(view.C, dy)

    def run(config: Config) -> None:
        c_blocks = c_blocks_of(view, config)
        tiles, iters = split(view.S, config, c_blocks, 1 << 30)
        args = (dy, x, iters, tiles, view.H, view.W, view.C)
        constants = {"BORDER": border, "WIDE": wide}
        launch("_fold_kernel", view.N * c_blocks * tiles, args, constants, config)

    # Without 16-byte pixels, channels are loaded one by one, 2 bytes at a time. Then 8 elements per thread
    # would spill (sm_90 with Triton 3.6).
    tuned("fold", key_of(view, x, border), tile_configs(view, 8 if wide else 4), x, run)
    return x


def fold_border_(dy: Tensor, border: int) -> Tensor:
    """Add the gradient of the reflected border to the pixels that the border copies, in place.

    dy: [N, C, H + 2b, W + 2b] (channels_last).
    """
    N, C, H, W = dy.shape[0], dy.shape[1], dy.shape[2] - 2 * border, dy.shape[3] - 2 * border
    block_c = min(64, triton.next_power_of_2(C))
    block_s = 32 if scale() is INTERPRETER else 16
    warps = 4 if block_c >= 32 else 1
    config = Config((("BLOCK_S", block_s), ("BLOCK_C", block_c)), warps)
    tiles = triton.cdiv(2 * border * (W + H), block_s)
    grid = N * triton.cdiv(C, block_c) * tiles
    launch("_fold_border_kernel", grid, (dy, tiles, H, W, C), {"BORDER": border}, config)
    return dy
