"""Measure the limits of the machine: the rates of copies and matrix products, and the cost of one launch.

These limits are the ceilings of the roofline: all floors, which are lower bounds on times, are calculated
from them. They are measured in the same run as the other benches, and are not compared with each other.
"""

from __future__ import annotations

import pytest
import torch

from bench.machine import DEVICE
from bench.operators import ROUNDS, copies, products
from bench.timing import Builders, Entrant, Race, Steps, clock

PROVIDERS = ["copy", "matmul fp32", "matmul bf16", "launch"]
COPIED = {"cpu": 1 << 28, "cuda": 1 << 31}
LAUNCHES = 1000

pytestmark = [
    pytest.mark.benchmark(timer=clock, warmup=False),
    pytest.mark.telling(2),
    pytest.mark.cost(cpu=5, cuda=5),
]


def launches() -> Entrant:
    """Return an entrant that runs LAUNCHES minimal operations, to measure the cost of one launch."""
    tiny = torch.zeros(1, device=DEVICE)
    steps = Steps(lambda: [lambda: tiny.add_(1)] * LAUNCHES, DEVICE)
    return Entrant(steps, info={"operations": LAUNCHES})


def make_builders() -> Builders:
    return {
        "copy": lambda: copies(COPIED[DEVICE], 2),
        "matmul fp32": lambda: products(torch.float32),
        "matmul bf16": lambda: products(torch.bfloat16),
        "launch": launches,
    }


@pytest.mark.parametrize("provider", PROVIDERS)
def bench_ceilings(race: Race, provider: str) -> None:
    race(f"ceilings, {DEVICE}", make_builders(), ROUNDS[DEVICE], seconds=5)
