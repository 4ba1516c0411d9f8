"""Exact tiles on a GPU: the result of the whole image, and no more memory than the estimate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcyclegan.inference import tiling
from fastcyclegan.inference.tiling import FACTOR, TiledTranslator
from fastcyclegan.inference.translator import Translator
from fastcyclegan.nn.networks import Generator
from fastcyclegan.settings.tiles import TileSettings, TileStorage
from fastcyclegan.tiles.memory import need_of
from fastcyclegan.tiles.plan import plan

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


@pytest.fixture
def ieee() -> Iterator[None]:
    """Let convolutions multiply fp32 numbers, and not TF32, whose rounding depends on the kernel."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def translator(precision: str) -> Translator:
    torch.manual_seed(0)
    return Translator(Generator(ngf=32, n_blocks=3).eval(), GPU, precision)


def image(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.usefixtures("ieee")
@pytest.mark.parametrize("where", ["device", "host", "disk"])
def test_tiles_equal_the_whole_image(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    storage: TileStorage = "disk" if where == "disk" else "memory"
    if where == "host":
        monkeypatch.setattr(tiling, "fits_on", lambda *_: False)
    of_image = translator("fp32")
    tiled = TiledTranslator(of_image, TileSettings(128, tile_storage=storage), tmp_path, lines.append)
    pixels = image(390, 514)
    (whole,) = of_image([pixels])
    translated = tiled(pixels, "a", "a")
    assert whole is not None
    assert translated is not None
    assert np.abs(whole.astype(int) - translated.astype(int)).max() <= 1
    assert {"device": "cuda", "host": "cpu", "disk": str(tmp_path)}[where] in lines[-1]


def test_the_estimate_holds() -> None:
    of_image = translator("bf16")
    tiled = TiledTranslator(of_image, TileSettings(256), Path())
    tiled(image(1024, 1024), "a", "a")  # kernels are compiled
    planned = plan(of_image.net, 3, (1024, 1024), 256)
    need = need_of(planned)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tiled(image(1024, 1024), "a", "a")
    used = torch.cuda.max_memory_allocated() - before
    # Weights are rounded to bf16 for each convolution.
    weights = 2 * max(p.numel() for p in of_image.net.parameters())
    assert used <= 2 * (need.stored + FACTOR * need.temporary) + weights
