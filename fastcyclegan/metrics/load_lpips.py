"""Find the files of LPIPS, and load it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fastcyclegan.data.pixels import to_unit_range
from fastcyclegan.kernels._cache import cache_folder
from fastcyclegan.metrics.features import exact_convolutions
from fastcyclegan.metrics.lpips import BACKBONES, Lpips
from fastcyclegan.nn.feature_networks import PUBLISHED, published_file
from fastcyclegan.settings.metrics import MetricConfig

_BACKBONES = {"alex": "alexnet", "vgg16": "vgg16"}


def has_weights(config: MetricConfig) -> bool:
    """Return whether the weights of the network of LPIPS are on this machine."""
    published = PUBLISHED[_BACKBONES[config.lpips_net]]
    return config.lpips_weights is not None or (cache_folder("features") / published.file).exists()


def least_side(config: MetricConfig) -> int:
    """Return the side in pixels of the smallest images that LPIPS takes with ``config``."""
    kind = BACKBONES[config.lpips_net]
    with torch.device("meta"):  # without memory for weights
        return kind.build().least_side_for(tuple(kind.layers))


def load_lpips(config: MetricConfig, device: torch.device, log: Callable[[str], None]) -> Lpips:
    """Load LPIPS as ``config`` describes it. The weights of its network are downloaded once.

    Raises UserError if they cannot be downloaded or read.
    """
    file = config.lpips_weights
    if file is None:
        name = _BACKBONES[config.lpips_net]
        file = published_file(name, log, lambda received, total: None, hint="--lpips_weights FILE")
    return Lpips(config.lpips_net, file).to(device)


def lpips_of(lpips: Lpips, fake: NDArray[np.uint8], real: NDArray[np.uint8]) -> float:
    """Return the distance of two images [H, W, 3] of the same size."""
    device = lpips.shift.device
    images = [to_unit_range(torch.from_numpy(image.copy())[None], device) for image in (fake, real)]
    with torch.no_grad(), exact_convolutions():
        return float(lpips(*images).item())
