"""Start small training runs, in this process or in another one, and compare their states."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

import torch

from fastcyclegan.checkpoints import run_files
from fastcyclegan.cli import parse_train
from fastcyclegan.console import Console
from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training.run_report import read_stats
from fastcyclegan.training.state_writer import StateWriter
from fastcyclegan.training.trainer import Trainer, train

TRAIN = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "train.py")]
TINY = [
    "--load_size",
    "20",
    "--crop_size",
    "16",
    "--netG",
    "resnet_1blocks",
    "--ngf",
    "2",
    "--ndf",
    "2",
    "--netD",
    "n_layers",
    "--n_layers_D",
    "1",
    "--pool_size",
    "3",
]


def arguments(dataset: Path, runs: Path, name: str, *more: str) -> list[str]:
    return [
        *TINY,
        "--device",
        "cpu",
        "--dataroot",
        str(dataset),
        "--checkpoints_dir",
        str(runs),
        "--name",
        name,
        "--num_threads",
        "0",
        *more,
    ]


def run(dataset: Path, runs: Path, name: str, *more: str) -> Trainer:
    return train(parse_train(arguments(dataset, runs, name, *more)), Console())


def at_once(write: Callable[..., None]) -> Callable[..., None]:
    """Return ``write`` of StateWriter such that it ends when the files are on the disk.

    Then no periodic save is left out because the last one is still being written.
    """

    def write_and_wait(self: StateWriter, *args: Any, **kwargs: Any) -> None:
        write(self, *args, **kwargs)
        self.close()

    return write_and_wait


def assert_same_state(one: Path, two: Path) -> None:
    """Assert that the states of two runs are equal bit for bit.

    A state consists of weights, optimizers, pools, random state and schedule.
    """
    a, b = (load_tensors(folder / run_files.STATE) for folder in (one, two))
    for state in (a, b):
        # Log records that could not be written at first. They stay in the state of a complete run.
        state["extra"].pop("unlogged", None)

    def compare(x: Any, y: Any, path: str) -> None:
        if isinstance(x, torch.Tensor):
            assert torch.equal(x, y), path
            assert x.stride() == y.stride(), path
        elif isinstance(x, dict):
            assert x.keys() == y.keys(), path
            for key in x:
                compare(x[key], y[key], f"{path}/{key}")
        elif isinstance(x, list):
            assert len(x) == len(y), path
            for n, (p, q) in enumerate(zip(x, y, strict=True)):
                compare(p, q, f"{path}/{n}")
        else:
            assert x == y, path

    for key in ("iteration", "first", "nets", "optimizers", "recipe", "rng", "extra", "ema"):
        compare(a.get(key), b.get(key), key)


# --- In a separate process ----------------------------------------------------------------------------------


# Makes the process independent of how the tests were started: under nohup, in a terminal, or by a background
# script, which ignores SIGINT.
LAUNCHER = """
import os, signal, sys
ignored = sys.argv[1].split(",")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN if number.name in ignored else signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.execv(sys.argv[2], sys.argv[2:])
"""


def start_process(args: list[str], ignored: Iterable[signal.Signals] = ()) -> subprocess.Popen[str]:
    """Start a training process in a separate session. It ignores exactly the signals in ``ignored``."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", LAUNCHER, ",".join(number.name for number in ignored), *TRAIN, *args]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def iterations_logged(folder: Path) -> int:
    records = read_stats(folder)
    return records[-1]["iteration"] if records else 0


def forked(work: Callable[[], str], until: tuple[int, int]) -> TextIO:
    """Call ``work`` in a forked process, and return a file from which its result can be read as a line.

    The process ends when nobody else holds the end for writing of the pipe ``until``. It must use no threads
    of the libraries that this process has loaded.
    """
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            os.write(writer, f"{work()}\n".encode())
            os.close(until[1])
            os.read(until[0], 1)
        finally:
            os._exit(0)
    os.close(writer)
    return os.fdopen(reader)
