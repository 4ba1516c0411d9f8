"""Benchmark the translation of a folder of images by a new process, from its start to its end.

The providers are a transcription of the official test.py (official_test.py), and scripts/translate.py in each
precision. Both read the same JPEG images of 256x256 pixels and the same weights and write PNG files; the
official one also writes a copy of each input and a page. What is made once on a machine, such as the library
of C++ kernels, is made before the first round. The images of the last round are compared with float64, as
8-bit images.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bench.baselines import plain_networks
from bench.cyclegan_baseline import block_count, cyclegan_config
from bench.machine import DEVICE, ROOT
from bench.providers import faulty_copies
from bench.timing import Builders, Entrant, Race, Unavailable, builders_of, clock
from fastcyclegan.config import TrainConfig
from fastcyclegan.engine import resolve_precision
from fastcyclegan.testing import assert_parity

PRECISIONS = ("fp32", "bf16", "auto")
PROVIDERS = ["official", *(f"ours, {precision}" for precision in PRECISIONS)]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
IMAGES, ROUNDS = 20, 5
# As many images are compared; in float64 a processor takes seconds for each.
CHECKED = 2

pytestmark = [
    pytest.mark.benchmark(timer=clock, warmup=False),
    pytest.mark.telling(8),
    pytest.mark.cost(cpu=250, cuda=60),
]


def write_images(folder: Path, count: int, size: int) -> None:
    """Write ``count`` JPEG images, with smooth shapes and some noise, as photos have."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        pixels = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), np.float32)
        noisy = pixels + random.normal(0, 8, pixels.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03}.jpg", quality=92)


def read(file: Path) -> Tensor:
    """Return an image file as a tensor [3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB")))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


class Job:
    """A folder of images and a file of weights, with the exact translations of the first images."""

    def __init__(self, folder: Path, config: TrainConfig, count: int, size: int) -> None:
        self.folder, self.config, self.count, self.size = folder, config, count, size
        self.net = plain_networks(config)["G_AB"]
        self.blocks = block_count(config)
        write_images(folder / "images", count, size)
        write_images(folder / "one", 1, size)
        for name, net in (("weights", self.net), ("faulty", faulty_copies({"G": self.net})["G"])):
            torch.save(net.state_dict(), folder / f"{name}.pth")

    def command(self, provider: str, images: str, output: Path, weights: str = "weights") -> list[str]:
        """Return the command that translates the folder ``images``."""
        source, file = str(self.folder / images), str(self.folder / f"{weights}.pth")
        if provider == "official":
            model: Any = self.config.model
            size, ngf, blocks = (str(n) for n in (self.size, model.ngf, self.blocks))
            sizes = ["--load_size", size, "--crop_size", size, "--ngf", ngf, "--n_blocks", blocks]
            paths = ["--dataroot", source, "--weights", file, "--results_dir", str(output)]
            return [sys.executable, "-m", "bench.official_test", *paths, *sizes]
        paths = ["--weights", file, "--input", source, "--output", str(output)]
        options = ["--resize", str(self.size), "--precision", provider.removeprefix("ours, ")]
        return [sys.executable, "scripts/translate.py", *paths, *options]

    @cache  # noqa: B019 - a few entries for one group
    def expected(self, number: int, dtype: torch.dtype) -> Tensor:
        """Return the translation of image ``number`` by PyTorch in ``dtype``, [3, H, W] in [-1, 1].

        It has 8 bits, except in float64.
        """
        net: nn.Module = plain_networks(self.config)["G_AB"].eval()
        x = read(self.folder / "images" / f"{number:03}.jpg")[None]
        with torch.inference_mode():
            if dtype == torch.float64:
                return net.double()(x.double())[0]
            with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
                y = net(x)[0].float()
        return ((y + 1) * 127.5).round() / 127.5 - 1

    def check(self, provider: str, precision: str, output: Path) -> None:
        """Raise AssertionError if an image is missing, or not close enough to float64 by the parity rule."""
        folder, ending = (output / "images", "_fake") if provider == "official" else (output, "")
        files = sorted(folder.glob(f"*{ending}.png"))
        assert [file.name for file in files] == [f"{n:03}{ending}.png" for n in range(self.count)], provider
        for number in range(min(CHECKED, self.count)):
            exact = self.expected(number, torch.float64)
            rounded = self.expected(number, DTYPES[precision])
            # The official code rounds down, so its images are half a step too dark.
            image = read(files[number]) + (1 / 255 if provider == "official" else 0)
            assert_parity(f"{provider}: image {number}", image, rounded, exact, DTYPES[precision])


def process(command: list[str]) -> None:
    """Run ``command`` in a new process. Raises RuntimeError if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command[1:3])}: {(result.stderr + result.stdout).strip()[-500:]}")


def precision_of(provider: str) -> str:
    """Return the precision in which a provider computes. Raises Unavailable if this device lacks it."""
    if provider == "official":
        return "fp32"
    device = torch.device(DEVICE)
    wanted = provider.removeprefix("ours, ")
    if wanted == "bf16" and resolve_precision("auto", device, compiled=True) != "bf16":
        raise Unavailable("this device has no bf16 instructions")
    return resolve_precision(wanted, device, compiled=False)


def make_builders(job: Job, quick: bool, fault: bool) -> Builders:
    def build(provider: str) -> Entrant:
        precision = precision_of(provider)
        if quick and provider not in PROVIDERS[:2]:
            raise Unavailable("left out of a quick run")
        output = job.folder / provider.replace(", ", "-")
        weights = "faulty" if fault and provider != "official" else "weights"
        if not quick:
            process(job.command(provider, "one", output))

        def before() -> None:
            shutil.rmtree(output, ignore_errors=True)

        def run() -> None:
            process(job.command(provider, "images", output, weights))

        info = {"pictures": job.count, "precision": precision, "size": job.size}
        # Each round starts a new process, so nothing but what is on the disk can be warm.
        return Entrant(run, lambda: job.check(provider, precision, output), info, cold=True, before=before)

    return builders_of(PROVIDERS, build)


@pytest.mark.parametrize("provider", PROVIDERS)
def bench_translate(
    race: Race, quick: bool, fault: bool, tmp_path_factory: pytest.TempPathFactory, provider: str
) -> None:
    config, count, size, rounds = cyclegan_config(), IMAGES, 256, ROUNDS
    if quick:
        config, count, size, rounds = cyclegan_config(netG="resnet_1blocks", ngf=8), 2, 32, 1
    netG = config.model.netG  # type: ignore[attr-defined]
    group = f"translation of {count} images of {size}x{size} by a new process, {netG}, {DEVICE}"
    job = Job(tmp_path_factory.mktemp("translate"), config, count, size)
    race(group, make_builders(job, quick, fault), rounds, seconds=150)
