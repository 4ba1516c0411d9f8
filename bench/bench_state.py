"""Benchmark saving and loading the state of a training run.

The four weight files of the official code are compared with fastcyclegan's whole training state, from which a
run resumes exactly.

The networks are the default ones after one iteration at 64x64. Their training state includes the optimizers'
moments and a pool of 50 images per domain. "snapshot" is the part of saving for which the training loop
waits; a thread writes the file afterwards. The loaded state must equal the saved one bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from bench.machine import DEVICE, tensor_bytes
from bench.timing import Builders, Entrant, Race, clock
from fastcyclegan.config import ModelConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import Engine
from fastcyclegan.tensor_files import load_tensors, save_tensors, tensors_in, to_cpu
from fastcyclegan.testing import make_engine, random_batch, seeded_networks

LR = 2e-4

pytestmark = [
    pytest.mark.benchmark(timer=clock, warmup=False),
    pytest.mark.telling(6),
    pytest.mark.cost(cpu=25, cuda=30),
]


def make_builders(action: str, folder: Path, config: ModelConfig) -> Builders:
    engine = make_engine(seeded_networks(config), device=DEVICE)
    batch = random_batch(64, Plan(0, 9, 9), 0)
    engine.step(batch.with_images(lambda images: images.to(DEVICE)), LR)
    saved = to_cpu(engine.state_dict())

    def entrant(size: int, save: Callable[[], None], load: Callable[[], None]) -> Entrant:
        run = {"save": save, "load": load}[action]
        return Entrant(run, lambda: check_state(engine, saved), {"bytes": size})

    def official() -> Entrant:
        names = engine.recipe.official_names
        files = {name: folder / f"latest_net_{official}.pth" for name, official in names.items()}
        save_official(engine, files)
        size = sum(file.stat().st_size for file in files.values())
        return entrant(size, partial(save_official, engine, files), partial(load_official, engine, files))

    def whole() -> Entrant:
        file = folder / "state.pt"

        def save() -> None:
            save_tensors(file, to_cpu(engine.state_dict()))

        def load() -> None:
            engine.load_state_dict(load_tensors(file))

        save()
        return entrant(file.stat().st_size, save, load)

    def snapshot() -> Entrant:
        info = {"bytes": tensor_bytes(saved)}
        return Entrant(lambda: to_cpu(engine.state_dict()), lambda: check_state(engine, saved), info)

    builders = {"official, weights": official, "ours, whole state": whole}
    if action == "save":
        builders["ours, snapshot"] = snapshot
    return builders


def save_official(engine: Engine, files: dict[str, Path]) -> None:
    for name, file in files.items():
        weights = engine.nets[name].state_dict()
        torch.save({key: value.cpu() for key, value in weights.items()}, file)


def load_official(engine: Engine, files: dict[str, Path]) -> None:
    for name, file in files.items():
        engine.nets[name].load_state_dict(torch.load(file, map_location=DEVICE, weights_only=True))


def check_state(engine: Engine, saved: object) -> None:
    """Raise AssertionError unless the engine's state equals ``saved`` bit for bit."""
    pairs = zip(tensors_in(engine.state_dict()), tensors_in(saved), strict=True)
    assert all(torch.equal(a.cpu(), b) for a, b in pairs), "the loaded state differs from the saved state"


@pytest.mark.parametrize(
    ("doing", "provider"),
    [
        ("save", "official, weights"),
        ("save", "ours, snapshot"),
        ("save", "ours, whole state"),
        ("load", "official, weights"),
        ("load", "ours, whole state"),
    ],
)
def bench_state(
    race: Race, quick: bool, tmp_path_factory: pytest.TempPathFactory, doing: str, provider: str
) -> None:
    config = ModelConfig()
    if quick:
        config = ModelConfig(netG="resnet_1blocks", ngf=8, ndf=8)
    group = f"{doing} the state of a run, {config.netG}, {DEVICE}"
    race(group, make_builders(doing, tmp_path_factory.mktemp("state"), config), rounds=5, seconds=20)
