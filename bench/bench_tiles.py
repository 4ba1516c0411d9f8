"""Benchmark the translation of one image by tiles, and as a whole.

The providers are the whole image, exact tiles, whose result is that of the whole image, and independent
tiles, whose result is not. They use the same network, and translate floats in fp32. A round is one image. The
peak memory includes the maps that exact tiles store between their passes.

The whole image and exact tiles are compared with float64. Independent tiles are only required to give
numbers, and their largest difference from float64 is recorded as ``difference``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.baselines import plain_networks
from bench.cyclegan_baseline import block_count, cyclegan_config
from bench.machine import DEVICE, PeakMemory
from bench.providers import faulty_copies
from bench.timing import Builders, Entrant, Race, builders_of, clock
from fastcyclegan.config import TrainConfig
from fastcyclegan.inference.tiling import TiledTranslator
from fastcyclegan.inference.translator import Translator
from fastcyclegan.nn.networks import Generator
from fastcyclegan.settings.tiles import TileSettings
from fastcyclegan.testing import assert_parity

PROVIDERS = ["whole", "exact_tiles", "independent_tiles"]
# The side of the image, of a tile, and the overlap of independent tiles.
SIZES = {"cpu": (512, 128, 32), "cuda": (2048, 1024, 64)}
QUICK = (64, 32, 8)
ROUNDS = {"cpu": 5, "cuda": 20}

pytestmark = [
    pytest.mark.benchmark(timer=clock, warmup=False),
    pytest.mark.telling(7),
    pytest.mark.cost(cpu=120, cuda=40),
]


class Job:
    """An image [3, side, side] in [-1, 1] with smooth shapes, the network ``net``, and its exact result."""

    def __init__(self, config: TrainConfig, side: int) -> None:
        torch.manual_seed(0)
        self.config, self.side = config, side
        self.net = plain_networks(config)["G_AB"].eval()
        small = torch.rand(1, 3, 8, 8, device=DEVICE) * 2 - 1
        self.image = F.interpolate(small, size=(side, side), mode="bicubic")[0].clamp(-1, 1)

    def translator(self, fault: bool) -> Translator:
        net = faulty_copies({"G": self.net})["G"] if fault else self.net
        model: Any = self.config.model
        ours = Generator(ngf=model.ngf, n_blocks=block_count(self.config))
        ours.load_state_dict(net.state_dict())
        return Translator(ours.eval(), torch.device(DEVICE), "fp32")

    @cache  # noqa: B019 - two entries for one group
    def expected(self, dtype: torch.dtype) -> Tensor:
        """Return the result of PyTorch's operators in ``dtype``."""
        net: nn.Module = plain_networks(self.config)["G_AB"].eval()
        net.load_state_dict(self.net.state_dict())
        with torch.inference_mode():
            return net.to(DEVICE, dtype)(self.image[None].to(dtype))[0]

    def check(self, provider: str, y: Tensor, info: dict[str, Any]) -> None:
        """Raise AssertionError if ``y`` is not close enough to float64 by the parity rule.

        For independent tiles, ``info`` receives the difference, and ``y`` only has to have the right shape.
        """
        exact = self.expected(torch.float64)
        assert y.shape == exact.shape
        assert y.isfinite().all()
        if provider == "independent_tiles":
            info["difference"] = (y - exact).abs().max().item()
        else:
            assert_parity(provider, y, self.expected(torch.float32), exact, torch.float32)


def translation(provider: str, translator: Translator, tile: int, overlap: int) -> Callable[[Tensor], Tensor]:
    """Return the function that translates an image [3, H, W] in [-1, 1] as ``provider`` does."""
    settings = TileSettings(tile)
    if provider == "independent_tiles":
        settings = TileSettings(tile, "independent", overlap)
    tiled = TiledTranslator(translator, settings, Path())

    def translate(image: Tensor) -> Tensor:
        pixels = image.permute(1, 2, 0)
        if provider == "whole":
            (result,) = translator.tensors([pixels], ["0"])
        else:
            result = tiled(pixels, "0", "the image")
        assert result is not None, "the network gives no numbers"
        return result.permute(2, 0, 1)

    return translate


def make_builders(job: Job, tile: int, overlap: int, fault: bool) -> Builders:
    def build(provider: str) -> Entrant:
        translate = translation(provider, job.translator(fault and provider == "exact_tiles"), tile, overlap)
        translate(job.image)  # the forms of the weights, and whatever else is made once
        memory = PeakMemory()
        with memory:
            translate(job.image)
        results: list[Tensor] = []

        def once() -> None:
            results[:] = [translate(job.image)]

        info: dict[str, Any] = {"pixels": job.side**2, "size": job.side, "batch": 1, "precision": "fp32"}
        info |= {"peak_bytes": memory.bytes, "tile": job.side if provider == "whole" else tile}
        return Entrant(once, lambda: job.check(provider, results[0], info), info)

    return builders_of(PROVIDERS, build)


@pytest.mark.parametrize("provider", PROVIDERS)
def bench_tiles(race: Race, quick: bool, fault: bool, provider: str) -> None:
    config, (side, tile, overlap) = cyclegan_config(), SIZES[DEVICE]
    if quick:
        config, (side, tile, overlap) = cyclegan_config(netG="resnet_1blocks", ngf=8), QUICK
    model: Any = config.model
    group = f"tiles of {tile}x{tile}, 1 of {side}x{side}, {model.netG} ngf {model.ngf}, {DEVICE}"
    race(group, make_builders(Job(config, side), tile, overlap, fault), ROUNDS[DEVICE], seconds=40)
