"""Benchmark the start of training: the imports and the first iteration.

The iteration runs without --compile, with it and an empty compiler cache, and with it and a full one. Where
the C++ kernels replace the compiler, the last of these is left out. Each measurement runs in a new process,
as it does when a user starts training. On a CPU the networks are small and images are 32x32, because only the
time before the first iteration matters there. The losses of the iteration are compared with the official
training step in float64.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.baselines import plain_networks
from bench.cyclegan_baseline import cyclegan_config
from bench.machine import DEVICE, ROOT
from bench.parity import Judge
from bench.providers import PROVIDERS
from bench.timing import Builders, Entrant, Race, Unavailable, builders_of, clock
from fastcyclegan.config import TrainConfig, to_dict
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.testing import random_batch

SMALL = cyclegan_config(netG="resnet_1blocks", ngf=8, ndf=8)
STARTS = [
    "official",
    "ours",
    "ours_compiled, cold",
    "ours_compiled, warm",
    "import torch",
    "from fastcyclegan import Generator",
]
SIZE = {"cpu": 32, "cuda": 256}

pytestmark = [
    pytest.mark.benchmark(timer=clock, warmup=False),
    pytest.mark.telling(9),
    pytest.mark.cost(cpu=60, cuda=200),
]

# The code that a new process runs: everything from its start to the losses of one iteration.
ITERATION = """
import json, sys
from bench.baselines import plain_networks
from bench.providers import train_step
from fastcyclegan.config import from_dict
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.testing import random_batch
name, device, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = from_dict(json.loads(sys.argv[4]))
step = train_step(name, plain_networks(config), device, config)
print(json.dumps([step.precision, step.run(random_batch(size, Plan(0, 9, 9), 0)).tolist()]))
"""


def process(code: str, *arguments: str, cache: Path | None = None) -> str:
    """Run ``code`` in a new process and return its output. Raises RuntimeError if it fails."""
    environment = dict(os.environ)
    if cache is not None:
        environment |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {result.stderr.strip().splitlines()[-1]}")
    return result.stdout


def make_builders(folder: Path, config: TrainConfig, size: int) -> Builders:
    batch = random_batch(size, Plan(0, 9, 9), 0)
    judge = Judge(plain_networks(config), [batch], DEVICE, config)
    arguments = (DEVICE, str(size), json.dumps(to_dict(config)))

    def build(provider: str) -> Entrant:
        if "import" in provider:
            return Entrant(lambda: process(provider), cold=True)
        name, _, cache = provider.partition(", ")
        if cache == "warm" and not PROVIDERS[name].compiles(DEVICE):
            raise Unavailable("nothing is compiled, so the cache makes no difference")
        outputs: list[str] = []
        numbers = iter(range(10**6))

        def run() -> None:
            cache_folder = None
            if cache == "warm":
                cache_folder = folder / "warm"
            elif cache == "cold":
                cache_folder = folder / f"cold{next(numbers)}"
            outputs.append(process(ITERATION, name, *arguments, cache=cache_folder))

        def check() -> None:
            precision, losses = json.loads(outputs[-1].splitlines()[-1])
            difference = judge.judge_losses(torch.tensor(losses, dtype=torch.float64), precision)
            error = f"relative error {difference.error:.3e} against float64, allowed {difference.allowed:.3e}"
            assert difference.passes, f"{provider}: losses: {error}"

        def before() -> None:
            if cache == "warm" and not (folder / "warm").exists():
                run()

        # Each round starts a new process, so nothing but the cache can be warm.
        return Entrant(run, check, cold=True, before=before)

    return builders_of(STARTS, build)


@pytest.mark.parametrize("provider", STARTS)
def bench_start_up(race: Race, quick: bool, tmp_path_factory: pytest.TempPathFactory, provider: str) -> None:
    config, size, rounds = SMALL, SIZE["cpu"], 1
    if DEVICE == "cuda":
        rounds = 2
        if not quick:
            config, size = cyclegan_config(), SIZE["cuda"]
    model: Any = config.model
    setting = f"{size}x{size}, {model.netG} ngf {model.ngf}, {DEVICE}"
    group = f"start of a process to the end of its first iteration, {setting}"
    race(group, make_builders(tmp_path_factory.mktemp("caches"), config, size), rounds)
