"""Saving and loading: the official code's four files of weights, and our whole state, from which a run goes
on exactly.

The networks are the default ones after an iteration at 64x64, with their optimizers' moments and a pool of 50
pictures a side. "snapshot" is what the training loop waits for; the file is written by a thread. What is
loaded must be what was saved, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.machine import DEVICE, held_bytes
from bench.timing import Entrant, Race, clock
from fastcyclegan.config import ModelConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import Engine
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.tensor_files import load_tensors, save_tensors, to_cpu
from fastcyclegan.testing import make_engine, random_batch, seeded_networks

LR = 2e-4

PROVIDERS = ["official, weights", "ours, snapshot", "ours, whole state"]

pytestmark = [
    pytest.mark.benchmark(timer=clock, warmup=False),
    pytest.mark.telling(6),
    pytest.mark.cost(cpu=25, cuda=30),
]


def contest(doing: str, folder: Path, config: ModelConfig) -> dict[str, Callable[[], Entrant]]:
    engine = make_engine(seeded_networks(config), device=DEVICE)
    batch = random_batch(64, Plan(0, 9, 9), 0)
    engine.step(
        Batch(batch.A.to(DEVICE), batch.B.to(DEVICE), batch.paths_A, batch.paths_B, batch.samples), LR
    )
    kept = to_cpu(engine.state_dict())

    def official() -> Entrant:
        files = {
            name: folder / f"latest_net_{official}.pth"
            for name, official in CycleGANRecipe.official_names.items()
        }

        def save() -> None:
            for name, file in files.items():
                torch.save({key: value.cpu() for key, value in engine.nets[name].state_dict().items()}, file)

        def load() -> None:
            for name, file in files.items():
                engine.nets[name].load_state_dict(torch.load(file, map_location=DEVICE, weights_only=True))

        save()
        info = {"bytes": sum(file.stat().st_size for file in files.values())}
        return Entrant(save if doing == "save" else load, lambda: held(engine, kept), info)

    def whole() -> Entrant:
        file = folder / "state.pt"

        def save() -> None:
            save_tensors(file, to_cpu(engine.state_dict()))

        def load() -> None:
            engine.load_state_dict(load_tensors(file))

        save()
        return Entrant(
            save if doing == "save" else load, lambda: held(engine, kept), {"bytes": file.stat().st_size}
        )

    def snapshot() -> Entrant:
        return Entrant(
            lambda: to_cpu(engine.state_dict()), lambda: held(engine, kept), {"bytes": held_bytes(kept)}
        )

    found = {"official, weights": official, "ours, whole state": whole}
    return {**found, "ours, snapshot": snapshot} if doing == "save" else found


def held(engine: Engine, kept: object) -> None:
    """Raise AssertionError unless the state is bit for bit what it was."""
    pairs = zip(tensors(engine.state_dict()), tensors(kept), strict=True)
    assert all(torch.equal(a.cpu(), b) for a, b in pairs), "what was loaded is not what was saved"


def tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for item in items for t in tensors(item)]


@pytest.mark.parametrize(
    ("doing", "provider"),
    [("save", p) for p in PROVIDERS] + [("load", p) for p in PROVIDERS if "snapshot" not in p],
)
def bench_state(
    race: Race, quick: bool, tmp_path_factory: pytest.TempPathFactory, doing: str, provider: str
) -> None:
    config = ModelConfig(netG="resnet_1blocks", ngf=8, ndf=8) if quick else ModelConfig()
    group = f"{doing} the state of a run, {config.netG}, {DEVICE}"
    race(group, contest(doing, tmp_path_factory.mktemp("state"), config), rounds=5, seconds=20)
