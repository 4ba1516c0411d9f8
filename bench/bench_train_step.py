"""One training iteration, batch 1: the official order, and ours uncompiled and compiled, on the same weights and samples.

On a GPU at 256x256 with the default networks; on a CPU at 64x64 (the reduced size is in the group's name), where the ratio is what counts.
Before anything is timed, the losses of the first two iterations are held against the official order in float64 by the rule of
``fastcyclegan.testing``, with the official order in the same precision as the yardstick.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastcyclegan.config import ModelConfig
from fastcyclegan.data.plan import Plan
from fastcyclegan.engine import resolve_precision, why_not_compiled
from fastcyclegan.testing import assert_parity, copy_of, make_engine, random_batch, seeded_networks

sys.path.insert(0, str(Path(__file__).parent))
from official_order import OfficialCycleGAN

PARITY_STEPS, INPUTS = 2, 4
PLAN = Plan(seed=0, count_A=1000, count_B=1000)
SIZE = {"cpu": 64, "cuda": 256}
LR = 2e-4


def synchronised() -> float:
    """The timer: it waits for the device before it reads the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


pytestmark = pytest.mark.benchmark(timer=synchronised, warmup=False)


def official(device: str, dtype: torch.dtype = torch.float32, autocast: bool = False) -> tuple[Callable[[int], Tensor], str]:
    """Return a function that runs iteration n and returns its losses (in our order), and the precision."""
    nets = copy_of(seeded_networks(ModelConfig()), dtype)
    model = OfficialCycleGAN(*(nets[name].to(device) for name in ("G_AB", "G_BA", "D_B", "D_A")), lr=LR)

    def step(n: int) -> Tensor:
        batch = random_batch(SIZE[device], PLAN, n % INPUTS, dtype=dtype)
        model.set_input(batch.A.to(device).contiguous(), batch.B.to(device).contiguous())
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            model.optimize_parameters()
        return torch.stack([torch.as_tensor(loss) for loss in model.losses().values()]).detach()

    return step, "fp32"


def ours(device: str, compiled: bool) -> tuple[Callable[[int], Tensor], str]:
    precision = resolve_precision("auto", torch.device(device), compiled)
    engine = make_engine(seeded_networks(ModelConfig()), device=device, precision=precision, compiled=compiled)
    batches = [random_batch(SIZE[device], PLAN, n) for n in range(INPUTS)]
    batches = [type(b)(b.A.to(device), b.B.to(device), b.paths_A, b.paths_B, b.samples) for b in batches]
    return lambda n: engine.step(batches[n % INPUTS], LR), precision


@pytest.mark.parametrize("provider", ["official_order", "ours", "ours_compiled"])
def bench_train_step(benchmark: BenchmarkFixture, device: str, provider: str) -> None:
    benchmark.group = f"training iteration, {SIZE[device]}x{SIZE[device]}, batch 1, identity on, {device}"
    if provider == "ours_compiled" and (reason := why_not_compiled(torch.device(device))):
        pytest.skip(reason)
    step, precision = official(device) if provider == "official_order" else ours(device, provider == "ours_compiled")
    check_parity(step, device, precision)
    benchmark.extra_info.update(provider=provider, precision=precision, size=SIZE[device], parity="checked")
    numbers = iter(range(PARITY_STEPS, 10**9))
    benchmark.pedantic(lambda: step(next(numbers)), rounds=5 if device == "cpu" else 50, warmup_rounds=1)


def check_parity(step: Callable[[int], Tensor], device: str, precision: str) -> None:
    """Run the first iterations of ``step`` and hold their losses against the official order in float64."""
    truth, _ = official(device, torch.float64)
    yardstick, _ = official(device, autocast=precision == "bf16")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for n in range(PARITY_STEPS):
        assert_parity(f"losses of iteration {n}", step(n), yardstick(n), truth(n), dtype)
