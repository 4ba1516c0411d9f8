"""Benchmark the loaders without a model, in images per second.

The loaders are Pillow with 0, 2 and 8 processes, DALI, and the caches. Another bench times a training step
with images from a loader.

The synthetic images have gradients, edges and grain. They are 600x600 and 256x256, stored as JPEG of quality
90. The loaders resize them to 286x286 and take random 256x256 crops. Before a loader is timed, its first
batches are compared with Pillow's. It must load the same samples, with pixels as close as its resizing allows
(the bounds are those of tests/data/test_dali_loader.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from bench.machine import DEVICE
from bench.providers import LR
from bench.timing import Builders, Entrant, Race, Unavailable, builders_of, clock
from fastcyclegan.config import DataConfig, ModelConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.checked_files import check_files
from fastcyclegan.data.choose_loader import MAX_THREADS, Choice, cores, make_loader
from fastcyclegan.data.dali_pipeline import why_not_dali
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.loader import Loader, Source
from fastcyclegan.data.pillow_loader import FolderLoader
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import resolve_precision
from fastcyclegan.testing import make_engine, random_batch, seeded_networks

# The sizes of the image files, the usual one first. On a CPU it is the only one.
SIDES = [600, 256] if DEVICE == "cuda" else [600]
IMAGES, QUICK_IMAGES, CHECKED = 32, 4, 16
# The number of iterations per round. It must be much larger than the number of batches that a loader has
# prefetched when the round starts: four blocks for DALI, two batches per worker for Pillow.
ITERATIONS = {"folder": 48, "dali": 160, "cache": 512}
MORE_ON_A_GPU_MACHINE = 8
FED_BY = ["synthetic", "dali"]


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
    Provider("dali on the GPU", "dali", min(cores(), MAX_THREADS), device="cuda"),
    Provider("cache in RAM", "folder", 2, "ram"),
    Provider("cache on the GPU", "folder", 2, "gpu", "cuda"),
]


@cache
def photograph(side: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    line = np.arange(side) * (600 / side)
    pixels = np.zeros((side, side, 3))
    for _ in range(12):
        fx, fy, phase = rng.normal(0, 0.05), rng.normal(0, 0.05), rng.uniform(0, 6)
        # sin(fx x + fy y + phase), without computing a sine for every pixel.
        a, b = fx * line, fy * line + phase
        wave = np.outer(np.cos(b), np.sin(a)) + np.outer(np.sin(b), np.cos(a))
        pixels += rng.uniform(5, 25, 3) * wave[..., None]
    for _ in range(20):
        left, top = rng.integers(0, side, 2).tolist()
        width, height = rng.integers(8, side // 3, 2).tolist()
        pixels[top : top + height, left : left + width] += rng.normal(0, 40, 3)
    return Image.fromarray((127 + pixels + rng.normal(0, 5, pixels.shape)).clip(0, 255).astype(np.uint8))


pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False), pytest.mark.cost(cpu=35, cuda=40)]


@pytest.fixture(scope="module", params=SIDES, ids=lambda side: f"{side}x{side}")
def sources(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, dict[str, Source]]:
    """Return the height and width of the image files in pixels, and the sources of both domains."""
    root, side = tmp_path_factory.mktemp("images"), request.param
    count = QUICK_IMAGES if request.config.getoption("--bench-quick") else IMAGES
    return side, {domain: source(root, domain, count, side, seed) for domain, seed in (("A", 0), ("B", 1000))}


def source(root: Path, domain: str, count: int, side: int, seed: int) -> Source:
    """Write ``count`` synthetic images of ``domain`` to ``root``, and return them as a source.

    Their seeds are ``seed``, ``seed`` + 1 and so on.
    """
    paths = [root / f"{domain}{n:02d}.jpg" for n in range(count)]
    for n, path in enumerate(paths):
        photograph(side, seed + n).save(path, quality=90)
    return Source(paths, Fit.of(DataConfig()), dict(zip(paths, check_files(paths), strict=True)))


def check_against_pillow(loader: Loader, on_gpu: bool) -> None:
    bound = 0.25
    if on_gpu:
        bound = 0.7 * 1.5625 + 0.5
    reference = FolderLoader(loader.sources, loader.plan, loader.device)
    for ours, pillow in zip(loader.batches(0, CHECKED), reference.batches(0, CHECKED), strict=True):
        assert (ours.paths, ours.samples) == (pillow.paths, pillow.samples)
        for one, other in ((ours.A, pillow.A), (ours.B, pillow.B)):
            assert (one - other).abs().mean() * 127.5 <= bound


def loader_of(provider: Provider, sources: dict[str, Source], device: torch.device) -> Loader:
    choice = Choice(provider.kind, provider.threads, "bench")
    plan = Plan(0, len(sources["A"].paths), len(sources["B"].paths))
    return make_loader(choice, sources, plan, device, DataConfig(cache=provider.cache), lambda text: None)


def take(batches: Iterator[Batch], count: int) -> None:
    for _ in range(count):
        next(batches)


def entrant(provider: Provider, sources: dict[str, Source], quick: bool) -> Entrant:
    """Return a loader, ready to be timed.

    It is opened and warmed up before each of its rounds and closed afterwards. Otherwise it would prefetch
    while other loaders are timed.
    """
    if provider.device == "cuda" and DEVICE != "cuda":
        raise Unavailable("needs an NVIDIA GPU")
    if provider.threads > max(2, cores()) and provider.kind == "folder":
        raise Unavailable(f"needs more processes than there are CPU cores ({cores()})")
    device = torch.device(DEVICE)
    if provider.device == "cpu":
        device = torch.device("cpu")
    if provider.kind == "dali" and (reason := why_not_dali(device)):
        raise Unavailable(reason)
    loader = loader_of(provider, sources, device)
    check_against_pillow(loader, on_gpu=provider.kind == "dali" and device.type == "cuda")
    count = iterations_of(provider)
    if quick:
        count = 4
    reading: list[Iterator[Batch]] = []

    def before() -> None:
        reading.append(loader.batches(0, 10**9))
        take(reading[0], count)  # until all workers and buffers are busy

    def after() -> None:
        reading.pop().close()  # type: ignore[attr-defined]

    return Entrant(
        lambda: take(reading[0], count),
        info={"pictures": 2 * count, "operations": count},
        cold=True,
        before=before,
        after=after,
    )


def iterations_of(provider: Provider) -> int:
    count = ITERATIONS["cache"]
    if provider.cache == "none":
        count = ITERATIONS[provider.kind]
    if DEVICE == "cuda":
        count *= MORE_ON_A_GPU_MACHINE
    return count


@pytest.mark.parametrize("provider", [provider.name for provider in PROVIDERS])
def bench_loader(race: Race, quick: bool, sources: tuple[int, dict[str, Source]], provider: str) -> None:
    side, domains = sources
    group = f"loader alone, batch 1, {side}x{side} JPEG to 256x256, {cores()} cores, {DEVICE}"
    builders: Builders = {p.name: partial(entrant, p, domains, quick) for p in PROVIDERS}
    race(group, builders, rounds=1 if quick else 3)


def fed_by(provider: str, sources: dict[str, Source]) -> Entrant:
    gpu = torch.device("cuda")
    if provider == "dali" and (reason := why_not_dali(gpu)):
        raise Unavailable(reason)
    engine = make_engine(
        seeded_networks(ModelConfig()),
        device="cuda",
        precision=resolve_precision("auto", gpu, True),
        compiled=True,
    )
    loader = None
    if provider == "dali":
        loader = loader_of(Provider("dali", "dali", min(cores(), MAX_THREADS)), sources, gpu)
        check_against_pillow(loader, on_gpu=True)
    made = random_batch(256, Plan(0, IMAGES, IMAGES), 0)
    fixed = made.with_images(lambda images: images.to(gpu))
    reading: list[Iterator[Batch]] = []

    def steps(count: int) -> None:
        for _ in range(count):
            engine.step(next(reading[0]), LR)

    def before() -> None:
        if loader is None:
            reading.append(fixed for _ in range(10**9))
        else:
            reading.append(loader.batches(0, 10**9))
        steps(20)

    def after() -> None:
        reading.pop().close()  # type: ignore[attr-defined]

    return Entrant(
        lambda: steps(100), info={"pictures": 200, "operations": 100}, cold=True, before=before, after=after
    )


@pytest.mark.skipif(
    DEVICE != "cuda",
    reason="on a CPU a step takes a hundred times as long as loading its images",
)
@pytest.mark.parametrize("provider", FED_BY)
def bench_step_fed_by(race: Race, sources: tuple[int, dict[str, Source]], provider: str) -> None:
    """Compare a training step on images from a loader with the same step on a fixed batch.

    The difference is the time that loading adds to the step: hardly any, if the loader is fast enough. The
    results of the step itself are checked in bench_train_step.py.
    """
    side, domains = sources
    group = f"training iteration, 256x256, batch 1, --compile, fed by, files of {side}x{side}, {DEVICE}"
    race(group, builders_of(FED_BY, lambda name: fed_by(name, domains)), rounds=8)
