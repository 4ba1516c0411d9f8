"""Benchmark one training iteration of every provider, from the same weights and samples.

The providers are the official training step, as people run it and at its fastest, and fastcyclegan's training
step with and without --compile, and on a CPU also without its kernels.

On a GPU images are 256x256 with batch 1 and 4, with and without the identity loss. On a CPU they are 128x128
with batch 1, where only the ratio matters. Before a step is timed, its first iterations are compared with the
official training step in float64 (parity.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.baselines import plain_networks
from bench.compile_costs import code_of, remember_compiled, seconds_to_compile
from bench.cyclegan_baseline import block_count, cyclegan_config
from bench.machine import DEVICE, PeakMemory
from bench.parity import Judge, require
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

pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False), pytest.mark.cost(cpu=60, cuda=40)]


def make_builders(size: int, batch: int, identity: bool, config: TrainConfig, fault: bool) -> Builders:
    """Return a builder for each provider's training step, which also checks the parity of that step.

    Images are ``size`` pixels square. ``identity`` is whether ``config`` has an identity loss.
    """
    code = code_of("step", size, batch, config)
    plan = Plan(seed=0, count_A=1000, count_B=1000, batch_size=batch)
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
            "blocks": block_count(config),
            "identity": identity,
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
    torch.manual_seed(0)
    code = code_of("step", size, batch, config)
    race(
        group,
        make_builders(size, batch, identity, config, fault),
        rounds=ROUNDS[DEVICE],
        costs=lambda name: seconds_to_compile(name, code, DEVICE),
    )
