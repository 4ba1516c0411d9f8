"""One training iteration: the official order as people run it and at its best, and ours by its layers, from
the same weights and samples.

On a GPU at 256x256, batch 1 and 4, with the identity loss and without; on a CPU at 128x128, batch 1, where
the ratio is what counts. The first iterations of the very step that is timed are held to the official order
in float64 (parity.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.machine import DEVICE, PeakMemory
from bench.parity import Judge, require
from bench.providers import (
    PROVIDERS,
    TELLING,
    code_of,
    plain_networks,
    remember_compiled,
    seconds_to_compile,
    train_step,
)
from bench.timing import Entrant, Race, clock
from fastcyclegan.config import LossConfig, ModelConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.testing import random_batch

PARITY_STEPS, INPUTS = 2, 4
SIZE = {"cpu": 128, "cuda": 256}
# Iterations between two looks at the clock: a GPU's queue is not drained after each.
STRIDE = {"cpu": 1, "cuda": 10}
# Batch, identity; the first is what everybody trains with.
SETTINGS = [
    pytest.param((1, True), marks=pytest.mark.telling(1), id="batch1-identity"),
    pytest.param((4, True), marks=pytest.mark.telling(4), id="batch4-identity"),
    pytest.param((1, False), marks=pytest.mark.telling(6), id="batch1"),
    pytest.param((4, False), marks=pytest.mark.telling(7), id="batch4"),
]

pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False), pytest.mark.cost(cpu=60, cuda=40)]


def contest(
    size: int, batch: int, identity: bool, config: ModelConfig, fault: bool
) -> dict[str, Callable[[], Entrant]]:
    """Return what builds each provider for ``size`` squared."""
    what = code_of("step", size, batch, config, identity)
    plan = Plan(seed=0, count_A=1000, count_B=1000, batch_size=batch)
    loss = LossConfig() if identity else LossConfig(lambda_identity=0.0)
    nets = plain_networks(config)
    batches = [moved(random_batch(size, plan, n)) for n in range(max(INPUTS, PARITY_STEPS))]
    judge = Judge(nets, batches[:PARITY_STEPS], DEVICE, loss, config)

    def build(name: str) -> Entrant:
        memory = PeakMemory()
        step = train_step(name, nets, DEVICE, loss, config=config, fault=fault and PROVIDERS[name].ours)
        first = judge.first_iterations(name, step, memory)
        require(name, first.differences)
        remember_compiled(name, what)
        count = iter(range(10**9))

        def run() -> None:
            for _ in range(STRIDE[DEVICE]):
                step.run(batches[next(count) % INPUTS])

        info: dict[str, Any] = {
            "operations": STRIDE[DEVICE],
            "pictures": 2 * batch * STRIDE[DEVICE],
            "size": size,
            "batch": batch,
        }
        info |= {"ngf": config.ngf, "blocks": int(config.netG.removeprefix("resnet_").removesuffix("blocks"))}
        info |= {"identity": identity, "precision": step.precision, "peak_bytes": first.peak_bytes}
        # These iterations are part of warming up, but on a GPU a run is more than one.
        return Entrant(run, info=info, history=first.seconds if STRIDE[DEVICE] == 1 else [])

    return {name: lambda name=name: build(name) for name in TELLING}  # type: ignore[misc]


def moved(batch: Batch) -> Batch:
    a, b = (x.to(DEVICE) for x in (batch.A, batch.B))
    return Batch(a, b, batch.paths_A, batch.paths_B, batch.samples)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("setting", SETTINGS if DEVICE == "cuda" else SETTINGS[:1])
def bench_train_step(race: Race, quick: bool, fault: bool, setting: tuple[int, bool], provider: str) -> None:
    batch, identity = setting
    size, config = (
        (32, ModelConfig(netG="resnet_1blocks", ngf=8, ndf=8)) if quick else (SIZE[DEVICE], ModelConfig())
    )
    networks = f"{config.netG} ngf {config.ngf}"
    group = (
        f"training iteration, {size}x{size}, batch {batch}, identity {'on' if identity else 'off'},"
        f" {networks}, {DEVICE}"
    )
    torch.manual_seed(0)
    what = code_of("step", size, batch, config, identity)
    race(
        group,
        contest(size, batch, identity, config, fault),
        rounds=4 if DEVICE == "cpu" else 20,
        costs=lambda name: seconds_to_compile(name, what, DEVICE),
    )
