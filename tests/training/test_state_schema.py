"""States with a part that is damaged, or not what the engine would save: refused in one line, or legal."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan import CycleGAN
from fastcyclegan.cli import parse_train
from fastcyclegan.console import Console, QuietConsole
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors, to_cpu
from fastcyclegan.training.resume import restore_state
from fastcyclegan.training.run import Run
from fastcyclegan.training.start import Overrides, start
from fastcyclegan.training.trainer import Trainer
from tests.conftest import write_images
from tests.files.altered_values import NOT_JSON, PLAIN, altered, nested
from tests.training.runs import arguments, run
from tests.training.test_saved_run import differences

OPTIONS = {
    "everything that keeps a state": "--norm batch --lr_policy plateau --ema 0.9 --batch_size 2".split(),
    "images of several sizes": "--preprocess none".split(),
}


def _silent(text: str) -> None:
    pass


class Resumable:
    """A run without files, and a good state to restore it from."""

    def __init__(self, dataset: Path, options: list[str]) -> None:
        flags = arguments(dataset, Path("nowhere"), "r", "--max_iters", "4", "--loader", "folder", *options)
        self.run: Run = start(parse_train(flags), _silent, overrides=Overrides(files=False))
        trainer = Trainer(self.run, QuietConsole())
        trainer.train()
        record = {"iteration": 4, "epoch": 1, **dict.fromkeys(trainer.names, 0.5)}
        trainer.unlogged = [{**record, "lr": 2e-4, "it/s": 3.0, "images/s": 3.0}]
        self.state: dict[str, Any] = trainer.state()

    def restore(self, state: Any) -> None:
        restore_state(self.run, state, "state.pt", _silent)

    def require_untouched(self) -> None:
        """Assert that the engine and the run are as ``state`` left them."""
        expected = {name: self.state[name] for name in self.run.engine.state_dict()}
        found = to_cpu(self.run.engine.state_dict())
        # The schedule passes the learning rate to Adam with the next batch.
        rates = [f"/optimizers/{phase}/param_groups/0/lr" for phase in ("G", "D")]
        assert [path for path in differences(found, expected) if path not in rates] == []
        assert (self.run.iteration, self.run.first) == (4, 0)

    def train_on(self) -> None:
        """Train for another iteration. A run that has diverged may end with a message."""
        trainer = Trainer(self.run, QuietConsole())
        if self.run.iteration == 4:
            object.__setattr__(self.run.config.optim, "max_iters", 5)
        with contextlib.suppress(UserError):
            trainer.train()
            trainer.state()
        object.__setattr__(self.run.config.optim, "max_iters", 4)


@pytest.fixture(scope="module", params=list(OPTIONS))
def resumable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Resumable:
    root = tmp_path_factory.mktemp("data")
    for folder in ("trainA", "trainB"):
        write_images(root / folder, 3)
        write_images(root / folder / "wide", 2, size=(40, 24))
    return Resumable(root, OPTIONS[request.param])


def survives(resumable: Resumable, seed: int) -> str:
    """Restore and use a state with one alteration. Return the message if it is refused, otherwise ""."""
    state, path = altered(random.Random(seed), resumable.state, (*PLAIN, *NOT_JSON))
    try:
        resumable.restore(state)
    except UserError as error:
        message = str(error)
        assert message.startswith("state.pt: "), (seed, path, message)
        assert message.isprintable() and len(message) < 400, (seed, path, message)
        resumable.require_untouched()
        return message
    resumable.train_on()
    resumable.restore(resumable.state)
    return ""


def test_altered_states_are_refused_or_legal(resumable: Resumable) -> None:
    resumable.restore(resumable.state)
    refused = sum(survives(resumable, seed) != "" for seed in range(150))
    assert 75 < refused < 150


@pytest.mark.slow
def test_many_altered_states_are_refused_or_legal(resumable: Resumable) -> None:
    resumable.restore(resumable.state)
    refused = sum(survives(resumable, seed) != "" for seed in range(1000, 3000))
    print(f"{refused} of 2000 altered states were refused")
    assert 1000 < refused < 2000
