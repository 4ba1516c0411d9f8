"""Benchmark one training iteration of every provider, from the same weights and samples.

The providers are the official training step, as people run it and at its fastest, and fastcyclegan's training
step with and without --compile, and on a CPU also without its kernels.

On a GPU images are 256x256 with batch 1 and 4, with and without the identity loss. On a CPU they are 128x128
with batch 1, where only the ratio matters. pix2pix has batch 1 and 256x256 on both, which is the smallest
size that its default generator accepts, with batch norm and with instance norm. Before a step is timed, its
first iterations are compared with the official training step in float64 (parity.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from bench.baselines import plain_networks
from bench.compile_costs import code_of, remember_compiled, seconds_to_compile
from bench.cyclegan_baseline import block_count, cyclegan_config
from bench.machine import DEVICE, PeakMemory
from bench.parity import Judge, require
from bench.pix2pix_baseline import pix2pix_config
from bench.providers import BUILD_ORDER, PROVIDERS, train_step
from bench.timing import Builders, Entrant, Race, builders_of, clock
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.testing import random_batch

PARITY_STEPS, INPUTS = 2, 4
SIZE, ROUNDS = {"cpu": 128, "cuda": 256}, {"cpu": 4, "cuda": 20}
# Iterations per timed round. On a GPU there are several, so that it does not synchronise after each one.
STRIDE = {"cpu": 1, "cuda": 10}
# Batch size and identity loss. The first setting is the training default.
SETTINGS = [
    pytest.param((1, True), marks=pytest.mark.telling(1), id="batch1-identity"),
    pytest.param((4, True), marks=pytest.mark.telling(4), id="batch4-identity"),
    pytest.param((1, False), marks=pytest.mark.telling(6), id="batch1"),
    pytest.param((4, False), marks=pytest.mark.telling(7), id="batch4"),
]
# Norms of pix2pix. The first one is the training default.
NORMS = [
    pytest.param("batch", marks=pytest.mark.telling(4)),
    pytest.param("instance", marks=pytest.mark.telling(7)),
]

pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False)]


def make_builders(
    size: int, batch: int, config: TrainConfig, fault: bool, about: Mapping[str, Any]
) -> Builders:
    """Return a builder for each provider's training step, which also checks the parity of that step.

    Images are ``size`` pixels square. ``about`` is more information for the results.
    """
    code = code_of("step", size, batch, config)
    paired = config.data.dataset_mode == "aligned"
    plan = Plan(seed=0, count_A=1000, count_B=1000, batch_size=batch, paired=paired)
    nets = plain_networks(config)
    batches = [to_device(random_batch(size, plan, n)) for n in range(max(INPUTS, PARITY_STEPS))]
    judge = Judge(nets, batches[:PARITY_STEPS], DEVICE, config)

    def build(name: str) -> Entrant:
        memory = PeakMemory()
        step = train_step(name, nets, DEVICE, config, fault=fault and PROVIDERS[name].ours)
        first = judge.first_iterations(name, step, memory)
        require(name, first.differences)
        remember_compiled(name, code, DEVICE)
        count = iter(range(10**9))

        def run() -> None:
            for _ in range(STRIDE[DEVICE]):
                step.run(batches[next(count) % INPUTS])

        info: dict[str, Any] = {
            "operations": STRIDE[DEVICE],
            "pictures": 2 * batch * STRIDE[DEVICE],
            "size": size,
            "batch": batch,
            "ngf": config.model.ngf,  # type: ignore[attr-defined]
            **about,
            "precision": step.precision,
            "peak_bytes": first.peak_bytes,
        }
        entrant = Entrant(run, info=info)
        if STRIDE[DEVICE] == 1:
            # These iterations count as warm-up runs; on a GPU they do not, because a run consists of several.
            entrant.history = first.seconds
        return entrant

    return builders_of(BUILD_ORDER, build)


def to_device(batch: Batch) -> Batch:
    return batch.with_images(lambda images: images.to(DEVICE))


def run_race(
    race: Race, group: str, size: int, batch: int, config: TrainConfig, fault: bool, **about: Any
) -> None:
    """Time the providers of training with ``config``, as the bench ``group``."""
    torch.manual_seed(0)
    code = code_of("step", size, batch, config)
    race(
        group,
        make_builders(size, batch, config, fault, about),
        rounds=ROUNDS[DEVICE],
        costs=lambda name: seconds_to_compile(name, code, DEVICE),
    )


@pytest.mark.cost(cpu=60, cuda=40)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("setting", SETTINGS if DEVICE == "cuda" else SETTINGS[:1])
def bench_train_step(race: Race, quick: bool, fault: bool, setting: tuple[int, bool], provider: str) -> None:
    batch, identity = setting
    size, config, loss = SIZE[DEVICE], cyclegan_config(identity), "off"
    if quick:
        size, config = 32, cyclegan_config(identity, netG="resnet_1blocks", ngf=8, ndf=8)
    if identity:
        loss = "on"
    model: Any = config.model
    networks = f"{model.netG} ngf {model.ngf}"
    group = f"training iteration, {size}x{size}, batch {batch}, identity {loss}, {networks}, {DEVICE}"
    run_race(race, group, size, batch, config, fault, blocks=block_count(config), identity=identity)


@pytest.mark.cost(cpu=100, cuda=40)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("norm", NORMS)
def bench_pix2pix_train_step(race: Race, quick: bool, fault: bool, norm: str, provider: str) -> None:
    size, config = 256, pix2pix_config(norm=norm)
    if quick:
        size, config = 32, pix2pix_config(norm=norm, netG="unet_32", ngf=8, ndf=8)
    model: Any = config.model
    networks = f"{model.netG} ngf {model.ngf}, {norm} norm"
    group = f"training iteration of pix2pix, {size}x{size}, batch 1, {networks}, {DEVICE}"
    run_race(race, group, size, 1, config, fault, recipe=model.model, norm=norm)
