"""Resize images for a feature network, by the rules that published numbers were computed with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastcyclegan.settings.metrics import ResizeRule

Pixels = NDArray[np.uint8]


def resized(image: Pixels, side: int | None, rule: ResizeRule) -> Tensor:
    """Return an image [H, W, 3] as floats [3, side, side] in 0..255; [3, H, W] if ``side`` is None.

    The rule "clean" is that of clean-fid (Parmar et al. 2022): Pillow's bicubic filter, which is antialiased,
    on each channel in floating point. The result is clipped to 0..255, but not rounded. "legacy" is bilinear
    without antialiasing.
    """
    if side is None:
        return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).contiguous()
    if rule == "legacy":
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        size = (side, side)
        found = torch.nn.functional.interpolate(pixels, size, mode="bilinear", align_corners=False)[0]
        return found.clamp(0, 255)
    channels = [_resized_channel(image[:, :, n], side) for n in range(image.shape[2])]
    return torch.from_numpy(np.stack(channels))


def _resized_channel(values: Pixels, side: int) -> NDArray[np.float32]:
    channel = Image.fromarray(values.astype(np.float32))
    return np.asarray(channel.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 255)
