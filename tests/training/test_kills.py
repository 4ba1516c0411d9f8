"""A run that is killed or stopped at random moments, and resumed until it is complete, loses nothing.

A few signals are sent by default, and hundreds by ``python -m pytest -m slow tests/training/test_kills.py``.
"""

from __future__ import annotations

import random
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training.run_report import read_stats
from tests.training.forked_runs import STOPS, ForkedRuns, Process, shared_server
from tests.training.interrupted import assert_complete, next_command
from tests.training.runs import TINY, arguments, iterations_logged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses pidfd and /proc, which are Linux only")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, *STOPS)
# A state is being written almost all the time.
SAVES = "--print_freq 1 --save_latest_freq 2 --display_freq 3 --save_epoch_freq 1".split()
LOADERS = {
    "folder": ["--loader", "folder", "--num_threads", "2"],
    "in process": ["--loader", "folder"],
    "auto": [],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ForkedRuns:
    return shared_server(tmp_path_factory.getbasetemp())


@dataclass
class Soak:
    """Kills runs of ``command`` at random moments, at most ``longest`` seconds after their start."""

    server: ForkedRuns
    command: Callable[[Path], list[str]]
    longest: float
    rng: random.Random
    sent: int = 0

    def complete(self, folder: Path, kills: int) -> None:
        """Kill and resume the run in ``folder`` until it is complete. Stop killing after ``kills`` kills."""
        command, code = self.command(folder.parent), 1
        while code != 0:
            with self.server.started(next_command(folder, command)) as process:
                number = self.rng.choice(SIGNALS)
                moment = self.rng.uniform(0, self.longest) * self.rng.choice((0.2, 0.5, 1.0))
                kill = self.sent < kills and not process.ended(moment)
                if kill:
                    self.sent += 1
                    process.send(number, group=self.rng.random() < 0.5)
                    done = iterations_logged(folder)
                code = process.wait()
            place = f"kill {self.sent}, {number.name} after {moment:.3f} s" if kill else "without a kill"
            assert code in ((0, 128 + number) if kill else (0,)), (
                f"{place}: exit code {code}\n{process.output}"
            )
            if kill and code == 0:
                # It was sent too late: otherwise, the run would have ended after the current iteration.
                assert iterations_logged(folder) - done <= 5, f"{place} was ignored:\n{process.output}"
            self.check(process, folder, place)

    def check(self, process: Process, folder: Path, place: str) -> None:
        """Assert that a run printed no error, and that it saved all iterations if it reports a stop."""
        output = process.output
        assert "Traceback" not in output, f"{place}:\n{output}"
        assert not re.search("^error:", output, re.MULTILINE), f"{place}:\n{output}"
        saved = re.search(r"^saved after iteration (\d+)", output, re.MULTILINE)
        if saved:
            assert load_tensors(folder / "state.pt")["iteration"] == int(saved[1]), place
            assert read_stats(folder)[-1]["iteration"] == int(saved[1]), place


def soak(
    server: ForkedRuns,
    tmp_path: Path,
    command: Callable[[Path], list[str]],
    kills: int,
    longest: float | None = None,
    check: Callable[[Path, Path], object] = assert_complete,
) -> None:
    """Send ``kills`` signals to runs of ``command`` and ``check`` each run against an uninterrupted one."""
    whole, started = tmp_path / "whole", time.monotonic()
    process = server.run(command(whole))
    assert process.code == 0, process.output
    if longest is None:
        longest = 1.1 * (time.monotonic() - started)
    killed = Soak(server, command, longest, random.Random(kills))
    number = 0
    while killed.sent < kills:
        runs = tmp_path / f"runs_{number}"
        killed.complete(runs / "r", kills)
        check(runs / "r", whole / "r")
        number += 1
    server.assert_no_process_left()


def command_of(dataset: Path, loader: str, iterations: int) -> Callable[[Path], list[str]]:
    more = [*SAVES, *LOADERS[loader], "--max_iters", str(iterations)]
    return lambda runs: arguments(dataset, runs, "r", *more)


@pytest.mark.parametrize("loader", ["folder", "auto"])
def test_a_run_interrupted_at_random_moments_loses_nothing(
    server: ForkedRuns, dataset: Path, tmp_path: Path, loader: str
) -> None:
    soak(server, tmp_path, command_of(dataset, loader, 15), kills=6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("loader", LOADERS)
def test_hundreds_of_interruptions_lose_nothing(
    server: ForkedRuns, dataset: Path, tmp_path: Path, loader: str
) -> None:
    soak(server, tmp_path, command_of(dataset, loader, 60), kills=170)


def builtin_command(runs: Path) -> list[str]:
    more = [*SAVES, "--device", "cpu", "--loader", "folder", "--max_iters", "2"]
    return [*TINY, "--checkpoints_dir", str(runs), "--name", "r", *more]


def assert_same_images(folder: Path, whole: Path) -> None:
    assert_complete(folder, whole)
    images = {
        run: {file.relative_to(run): file.read_bytes() for file in (run / "dataset").rglob("*.png")}
        for run in (folder, whole)
    }
    assert images[folder] == images[whole]


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_run_interrupted_while_it_draws_the_built_in_images(
    server: ForkedRuns, tmp_path: Path, kills: int
) -> None:
    soak(server, tmp_path, builtin_command, kills, longest=0.5, check=assert_same_images)
