"""A run survives a crash, and an error of the disk, at any call that changes a file.

Each test takes the calls that one run makes, and lets the run fail at one of them at a time. Then the run is
resumed, and must have lost nothing. By default only a few of the calls are tested; ``python -m pytest -m slow
tests/training/test_crashes.py`` tests them all.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_images
from tests.training.crashes import FILLING, REMOVING, Crash, Point, distinct, read_points
from tests.training.forked_runs import ForkedRuns, Process, shared_server
from tests.training.interrupted import assert_complete, next_command
from tests.training.runs import TINY, arguments

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="uses pidfd and /proc, which are Linux only")
SAVES = "--print_freq 1 --save_latest_freq 2 --display_freq 3 --save_epoch_freq 1 --loader folder".split()

Command = Callable[[Path], list[str]]
"""Maps the folder of runs to a command line."""


@dataclass
class Scenario:
    """A run that fails, and what it is compared with."""

    server: ForkedRuns
    scratch: Path
    before: Path | None
    """The folder of runs as it is before the run starts; None if it does not exist."""
    command: Command
    again: Command
    """The command after the failure."""
    whole: Path
    """The run that did not fail."""
    points: list[Point]

    def problems(self, crash: Crash) -> list[str]:
        """Return what is wrong after the run failed as ``crash`` describes, and was resumed."""
        runs, report = self.scratch / "runs", self.scratch / "report"
        if self.before is not None:
            shutil.copytree(self.before, runs)
        try:
            fields = dataclasses.asdict(crash)
            process = self.server.run(self.command(runs), watch(runs, report, fields))
            if crash.point not in read_points(report):
                return ["the run did not reach this call"]
            problems = [*self._problems_of_run(crash, process, runs / "r")]
            process = self.server.run(self.again(runs))
            if process.code != 0:
                return [*problems, f"cannot be resumed: {process.output.strip().splitlines()[-1]}"]
            return problems + self._lost(runs / "r", "after resuming")
        finally:
            shutil.rmtree(runs, ignore_errors=True)
            report.unlink()

    def _problems_of_run(self, crash: Crash, process: Process, folder: Path) -> list[str]:
        if crash.action in ("kill", "killed after"):
            return [] if process.code == 137 else [f"exit code {process.code} instead of a kill"]
        if process.code == 0 and crash.point.kind in REMOVING:
            return []  # what could not be removed is removed by the next run
        if process.code == 0:
            return self._lost(folder, "exit code 0")
        lines = process.output.strip().splitlines()
        errors = [line for line in lines if line.startswith("error:")]
        if process.code != 2 or "Traceback" in process.output or len(errors) != 1:
            return [f"exit code {process.code} and {len(errors)} lines of errors: {lines[-1]}"]
        if str(folder.parent) not in errors[0]:
            return [f"names no file: {errors[0]}"]
        return []

    def _lost(self, folder: Path, when: str) -> list[str]:
        try:
            assert_complete(folder, self.whole)
        # The files that are checked may be damaged in any way.
        except Exception as error:
            return [f"{when}: {type(error).__name__}: {str(error).splitlines()[0]}"]
        except AssertionError as error:
            return [f"{when}: {str(error).splitlines()[0]}"]
        return []


def watch(runs: Path, report: Path, crash: dict[str, Any] | None) -> dict[str, Any]:
    return {"runs": str(runs), "report": str(report), "crash": crash}


class Scenarios:
    """Prepares scenarios, each of them once."""

    def __init__(self, server: ForkedRuns, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.prepared: dict[str, Scenario] = {}
        for seed, (name, count) in enumerate({"trainA": 5, "trainB": 4, "testA": 2, "testB": 2}.items()):
            write_images(folder / "photos" / name, count, seed=seed)

    def get(self, name: str) -> Scenario:
        if name not in self.prepared:
            self.prepared[name] = self._prepare(name, *getattr(self, name)())
        return self.prepared[name]

    def start(self) -> tuple[list[str] | None, Command, Command]:
        command = self._command("--max_iters", "4")
        return None, command, lambda runs: next_command(runs / "r", command(runs))

    def resume(self) -> tuple[list[str] | None, Command, Command]:
        more = ["--continue_train", "--name", "r", "--max_iters", "7", "--checkpoints_dir"]
        return ["--max_iters", "4"], lambda runs: [*more, str(runs)], lambda runs: [*more, str(runs)]

    def overwrite(self) -> tuple[list[str] | None, Command, Command]:
        command = self._command("--max_iters", "4", "--overwrite")
        return ["--max_iters", "3", "--seed", "5"], command, command

    def built_in(self) -> tuple[list[str] | None, Command, Command]:
        more = [*TINY, *SAVES, "--device", "cpu", "--max_iters", "2", "--name", "r", "--checkpoints_dir"]
        return (
            None,
            lambda runs: [*more, str(runs)],
            lambda runs: next_command(runs / "r", [*more, str(runs)]),
        )

    def _command(self, *more: str) -> Command:
        return lambda runs: arguments(self.folder / "photos", runs, "r", *SAVES, *more)

    def _prepare(self, name: str, before: list[str] | None, command: Command, again: Command) -> Scenario:
        folder, existing = self.folder / name, None
        whole, report = folder / "whole", folder / "points"
        folder.mkdir()
        if before is not None:
            existing = folder / "before"
            process = self.server.run(self._command(*before)(existing))
            assert process.code == 0, process.output
            shutil.copytree(existing, whole)
        process = self.server.run(command(whole), watch(whole, report, None))
        assert process.code == 0, process.output
        return Scenario(self.server, folder, existing, command, again, whole / "r", read_points(report))


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Scenarios:
    server = shared_server(tmp_path_factory.getbasetemp())
    return Scenarios(server, tmp_path_factory.mktemp("crashes"))


def kills(points: Sequence[Point]) -> list[Crash]:
    crashes = []
    for point in points:
        crashes.append(Crash("kill", point))
        if point.kind == "rename":
            crashes.append(Crash("killed after", point))
    return crashes


def errors(points: Sequence[Point]) -> list[Crash]:
    crashes = []
    for point in points:
        crashes.append(Crash("error", point, errno.EIO))
        if point.kind not in REMOVING:
            crashes.append(Crash("error", point, errno.ENOSPC))
        if point.kind in FILLING:
            crashes.append(Crash("full", point, errno.ENOSPC))
    return crashes


def check(scenario: Scenario, crashes: list[Crash]) -> None:
    """Assert that the run survives each of ``crashes``; the message names those that it does not survive."""
    numbers = {point: number for number, point in enumerate(scenario.points, 1)}
    failures = []
    for crash in crashes:
        for problem in scenario.problems(crash):
            failures.append(f"{crash}, call {numbers[crash.point]}: {problem}")
    scenario.server.assert_no_process_left()
    assert crashes
    assert not failures, f"{len(failures)} after {len(crashes)} crashes:\n" + "\n".join(failures)


NAMES = ("start", "resume", "overwrite", "built_in")
# The calls that are tested by default: the action or error, the kind of call, a part of the path, and whether
# the first or the last such call is meant. Each of them is in another part of a run.
SOME = {
    ("start", "kills"): (
        ("kill", "close", "config.json", "first"),
        ("kill", "open", "state.pt", "first"),
        ("kill", "rename", "latest_net_G_B.pth", "last"),
        ("kill", "write", "samples/", "first"),
        ("kill", "write", "index.html", "last"),
    ),
    ("start", "errors"): (
        ("ENOSPC", "close", "config.json", "first"),
        ("EIO", "write", "tfevents", "first"),
        ("full", "close", "stats.jsonl", "last"),
        ("EIO", "write", "stats.jsonl", "last"),
        ("full", "write", "state.pt", "last"),
        ("ENOSPC", "write", "samples/", "last"),
    ),
    ("resume", "kills"): (
        ("kill", "write", "stats.jsonl", "last"),
        ("killed after", "rename", "state.pt", "last"),
        ("kill", "rename", "samples/", "last"),
    ),
    ("resume", "errors"): (
        ("ENOSPC", "close", "stats.jsonl", "first"),
        ("full", "close", "index.html", "last"),
        ("EIO", "rename", "1_net_G_B.pth", "first"),
    ),
    ("overwrite", "kills"): (
        ("kill", "unlink", "state.pt", "first"),
        ("kill", "unlink", "samples/", "first"),
    ),
    ("overwrite", "errors"): (
        ("EIO", "unlink", "latest_net_D_A.pth", "first"),
        ("full", "close", "config.json", "first"),
    ),
    ("built_in", "kills"): (("kill", "write", "trainB/", "last"),),
    ("built_in", "errors"): (
        ("full", "close", "trainA/", "last"),
        ("ENOSPC", "write", "testB/", "first"),
    ),
}


def find(points: list[Point], action: str, kind: str, path: str, place: str) -> Crash:
    """Return the crash that an entry of SOME describes."""
    found = [point for point in points if point.kind == kind and path in point.path]
    assert found, f"the run has no call {kind} of {path}"
    point = found[0 if place == "first" else -1]
    if action in ("EIO", "ENOSPC"):
        return Crash("error", point, getattr(errno, action))
    return Crash(action, point, errno.ENOSPC)


@pytest.mark.parametrize("kind", ["kills", "errors"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_survives_failures_at_some_calls(scenarios: Scenarios, name: str, kind: str) -> None:
    scenario = scenarios.get(name)
    check(scenario, [find(scenario.points, *chosen) for chosen in SOME[name, kind]])


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("crashes", [kills, errors])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_survives_failures_at_every_call(
    scenarios: Scenarios, name: str, crashes: Callable[[Sequence[Point]], list[Crash]]
) -> None:
    scenario = scenarios.get(name)
    check(scenario, crashes(distinct(scenario.points)))


def test_the_calls_of_a_run_are_found(scenarios: Scenarios) -> None:
    """Otherwise, the other tests would pass without any crash."""
    points = scenarios.get("start").points
    calls = [(point.kind, point.path) for point in points]
    assert {"open", "write", "close", "fsync", "rename", "mkdir", "unlink"} <= {kind for kind, _ in calls}
    for name in ("config.json", "state.pt", "latest_net_G_A.pth"):
        assert ("rename", f"r/{name}") in calls
    for name in ("stats.jsonl", "index.html"):
        assert any(path.startswith("r/") and name in path for _, path in calls)
    assert calls.count(("rename", "r/state.pt")) == 2
