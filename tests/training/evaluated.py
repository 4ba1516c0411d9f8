"""Small runs that evaluate their weights, and what an evaluation is made of, for tests."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.cli import parse_train
from fastcyclegan.console import QuietConsole
from fastcyclegan.training.evaluation_history import History, from_text
from fastcyclegan.training.run_report import STATS
from fastcyclegan.training.trainer import Trainer, train
from tests.recipes.states import state_of
from tests.training.runs import arguments

PAIRS = ["--eval_metric", "l1"]
"""Judge by L1. The held-out images of the fixture ``dataset`` are pairs, because their names are equal."""


def flags(dataset: Path, runs: Path, name: str, *more: str) -> list[str]:
    return arguments(dataset, runs, name, "--loader", "folder", "--print_freq", "1", *more)


def evaluated(dataset: Path, runs: Path, name: str, *more: str) -> Trainer:
    """Train a run with few iterations, which prints nothing."""
    return train(parse_train(flags(dataset, runs, name, *more)), QuietConsole())


def resumed(runs: Path, name: str, *more: str) -> Trainer:
    start = ["--continue_train", "--name", name, "--checkpoints_dir", str(runs)]
    return train(parse_train([*start, *more]), QuietConsole())


def history_of(run: Path) -> History:
    """Return the history in the state of ``run``."""
    return from_text(state_of(run)["extra"]["evaluations"])


def evaluations_in(run: Path) -> list[dict[str, Any]]:
    """Return the records of evaluations in stats.jsonl."""
    records = [json.loads(line) for line in (run / STATS).read_text().splitlines()]
    return [record for record in records if "eval_protocol" in record]


def losses_in(run: Path) -> list[dict[str, Any]]:
    """Return the records of losses in stats.jsonl, without their speed."""
    records = [json.loads(line) for line in (run / STATS).read_text().splitlines()]
    kept = [record for record in records if "eval_protocol" not in record]
    return [{name: value for name, value in each.items() if not name.endswith("/s")} for each in kept]


def best_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "best.json").read_text())
    return found


class _Means(nn.Module):
    """Three features of an image: the means of its channels after a small convolution."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.convolution = nn.Conv2d(3, 3, 3)

    def forward(self, images: Tensor) -> Tensor:
        means: Tensor = self.convolution(images / 255).relu().mean((2, 3))
        return means


class _Random(nn.Module):
    """Features that depend on random numbers, which the module draws from torch's global generator."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + torch.rand(images.shape[0], 3)


def feature_file(folder: Path, *, random: bool = False) -> Path:
    """Write a tiny TorchScript network for FID and KID. Return its file."""
    file = folder / ("random.pt" if random else "features.pt")
    module = _Random() if random else _Means()
    save_traced(module, torch.zeros(2, 3, 16, 16), file)
    return file


def save_traced(module: nn.Module, example: Tensor, file: Path) -> None:
    """Write ``module`` as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces a successor of TorchScript
        torch.jit.trace(module, example, check_trace=False).save(str(file))
