"""The loaders without a model, in pictures a second: Pillow in 0, 2 and 8 processes, DALI, and the caches; and a step fed by them.

Pictures are drawn: slopes, edges and grain, 600x600 and 256x256, as JPEG of quality 90; they become random 256x256 crops of 286x286.
Before a loader is timed, its first batches are held against Pillow's: the same samples, and pixels as near as its resizing allows (the
bounds are those of tests/data/test_dali.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from fastcyclegan.config import DataConfig, ModelConfig
from fastcyclegan.data.dali import why_not_dali
from fastcyclegan.data.folder import FolderLoader
from fastcyclegan.data.loaders import MOST_THREADS, Choice, cores, make_loader
from fastcyclegan.data.picture import Fit
from fastcyclegan.data.plan import Plan
from fastcyclegan.data.scan import check_files
from fastcyclegan.data.source import Batch, Loader, Source
from fastcyclegan.engine import resolve_precision
from fastcyclegan.testing import make_engine, random_batch, seeded_networks

sys.path.insert(0, str(Path(__file__).parent))
from bench_train_step import LR, synchronised

PICTURES, CHECKED = 48, 16
# A round must be long beside what a loader has ready when it begins: four blocks of DALI's, two batches a worker.
ITERATIONS = {"folder": 48, "dali": 256, "cache": 512}
MORE_ON_A_GPU_MACHINE = 8
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Provider:
    name: str
    kind: Literal["folder", "dali"]
    threads: int
    cache: Literal["none", "ram", "gpu"] = "none"
    device: Literal["any", "cpu", "cuda"] = "any"


PROVIDERS = [
    Provider("pillow, 2 workers", "folder", 2),
    Provider("pillow, 0 workers", "folder", 0),
    Provider("pillow, 8 workers", "folder", 8),
    Provider("dali on the CPU", "dali", cores(), device="cpu"),
    Provider("dali on the GPU", "dali", min(cores(), MOST_THREADS), device="cuda"),
    Provider("cache in RAM", "folder", 2, "ram"),
    Provider("cache on the GPU", "folder", 2, "gpu", "cuda"),
]

pytestmark = pytest.mark.benchmark(timer=synchronised, warmup=False)


@cache
def photograph(side: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] * (600 / side)
    pixels = np.zeros((side, side, 3))
    for _ in range(12):
        fx, fy, phase = rng.normal(0, 0.05), rng.normal(0, 0.05), rng.uniform(0, 6)
        pixels += rng.uniform(5, 25, 3) * np.sin(fx * x + fy * y + phase)[..., None]
    for _ in range(20):
        left, top, width, height = rng.integers(0, side, 2).tolist() + rng.integers(8, side // 3, 2).tolist()
        pixels[top : top + height, left : left + width] += rng.normal(0, 40, 3)
    return Image.fromarray((127 + pixels + rng.normal(0, 5, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module", params=[600, 256], ids=lambda side: f"{side}x{side}")
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Source, Source]:
    """Return the side of the files, and the sources of both domains."""
    root, found = tmp_path_factory.mktemp("pictures"), []
    for side in "AB":
        paths = [root / f"{side}{n:02d}.jpg" for n in range(PICTURES)]
        for n, path in enumerate(paths):
            photograph(request.param, n + 1000 * (side == "B")).save(path, quality=90)
        found.append(Source(paths, Fit.of(DataConfig()), dict(zip(paths, check_files(paths), strict=True))))
    return request.param, found[0], found[1]


def held_to_pillow(loader: Loader, on_gpu: bool) -> None:
    reference = FolderLoader(loader.a, loader.b, loader.plan, loader.device)
    for ours, pillow in zip(loader.batches(0, CHECKED), reference.batches(0, CHECKED), strict=True):
        assert (ours.paths_A, ours.paths_B, ours.samples) == (pillow.paths_A, pillow.paths_B, pillow.samples)
        for one, other in ((ours.A, pillow.A), (ours.B, pillow.B)):
            assert (one - other).abs().mean() * 127.5 <= (0.7 * 1.5625 + 0.5 if on_gpu else 0.25)


def loader_of(provider: Provider, a: Source, b: Source, device: torch.device) -> Loader:
    choice = Choice(provider.kind, provider.threads, "bench")
    return make_loader(choice, a, b, Plan(0, PICTURES, PICTURES), device, DataConfig(cache=provider.cache), lambda text: None)


def taken(batches: Iterator[Batch], count: int) -> None:
    for _ in range(count):
        next(batches)


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def bench_loader(benchmark: BenchmarkFixture, device: str, sources: tuple[int, Source, Source], provider: Provider) -> None:
    if provider.device == "cuda" and device != "cuda":
        pytest.skip("needs an NVIDIA GPU")
    where = CPU if provider.device == "cpu" else torch.device(device)
    if provider.kind == "dali" and (reason := why_not_dali(where)):
        pytest.skip(reason)
    side, a, b = sources
    benchmark.group = f"loader alone, batch 1, {side}x{side} JPEG to 256x256, {cores()} cores, {device}"
    loader = loader_of(provider, a, b, where)
    held_to_pillow(loader, on_gpu=provider.kind == "dali" and where.type == "cuda")
    count = ITERATIONS["cache" if provider.cache != "none" else provider.kind] * (MORE_ON_A_GPU_MACHINE if device == "cuda" else 1)
    batches = loader.batches(0, 10**9)
    taken(batches, count)  # until workers and buffers are at work
    benchmark.pedantic(lambda: taken(batches, count), rounds=4)
    batches.close()
    benchmark.extra_info.update(provider=provider.name, parity="checked", pictures=2 * count)


@pytest.mark.parametrize("provider", ["synthetic", "dali"])
def bench_step_fed_by(benchmark: BenchmarkFixture, device: str, sources: tuple[int, Source, Source], provider: str) -> None:
    """What loading costs the training step: nothing that matters, if the loader keeps ahead."""
    if device != "cuda":
        pytest.skip("on a CPU a step takes a hundred times as long as its pictures: there is nothing to see")
    gpu = torch.device(device)
    if provider == "dali" and (reason := why_not_dali(gpu)):
        pytest.skip(reason)
    side, a, b = sources
    benchmark.group = f"training iteration, 256x256, batch 1, --compile, fed by, files of {side}x{side}, {device}"
    engine = make_engine(seeded_networks(ModelConfig()), device=device, precision=resolve_precision("auto", gpu, True), compiled=True)
    plan = Plan(0, PICTURES, PICTURES)
    if provider == "dali":
        batches = loader_of(Provider("dali", "dali", min(cores(), MOST_THREADS)), a, b, gpu).batches(0, 10**9)
    else:
        fixed = random_batch(256, plan, 0)
        fixed = Batch(fixed.A.to(gpu), fixed.B.to(gpu), fixed.paths_A, fixed.paths_B, fixed.samples)
        batches = (fixed for _ in range(10**9))

    def steps(count: int) -> None:
        for _ in range(count):
            engine.step(next(batches), LR)

    steps(20)
    benchmark.pedantic(lambda: steps(100), rounds=8)
    batches.close()
    benchmark.extra_info.update(provider=provider, pictures=200)
