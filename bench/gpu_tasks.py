"""The parts of the GPU suite's stages, each in processes of its own with a limit: pytest, every option of the
engine, or a command.

A part gives an ``Outcome`` whatever becomes of its processes: what they had written down by then counts.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import lines_of, read_results
from bench.gpu_outcome import (
    AGAIN,
    MOST_AGAIN,
    Failure,
    Outcome,
    Surroundings,
    last_lines,
    lines_in,
    run_alone,
)
from bench.gpu_test_task import Tests
from bench.on_device import read_events
from bench.processes import ending_of, run_process


@dataclass(frozen=True)
class Command:
    """A command of the checkout whose exit code says whether it holds. The last ``shown`` lines of its output
    are worth a summary.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    shown: int = 6
    in_rehearsal: tuple[str, ...] = ()
    with_fault: tuple[str, ...] = ()

    def run(self, around: Surroundings, seconds: float) -> Outcome:
        log = around.file(self.name, ".log")
        given = self.arguments
        if around.rehearsed:
            given += self.in_rehearsal
        if around.fault:
            given += self.with_fault
        command = [argument.replace("RESULTS", str(around.results)) for argument in given]
        ended = run_process([sys.executable, *command], seconds, around.environment, log)
        outcome = Outcome(self.name, ending_of(ended, seconds), ended.seconds)
        if outcome.why:
            outcome.failures = [Failure(self.name, last_lines(ended.output))]
        outcome.shown = lines_in(ended.output)[-self.shown :]
        outcome.output = log.read_text(errors="replace")
        return outcome


@dataclass(frozen=True)
class Options:
    """Real iterations of every option of the engine, one process for all as long as it lives: after a fault
    the next goes on behind it.
    """

    name: str
    seconds: float

    def run(self, around: Surroundings, seconds: float) -> Outcome:
        began, record, log = time.monotonic(), around.work / "options.jsonl", around.work / "options.log"
        command = _options_command(around, "--record", str(record))
        tried: set[str] = set()
        while True:
            left = seconds - (time.monotonic() - began)
            ended = run_process(command, left, environment_of(around), log)
            # A case that ended its process; the next process leaves out whatever began.
            fatal = [case for case in _fatal(read_events(record)) if case not in tried]
            if ended.timed_out or not fatal:
                break
            tried.update(fatal)
            if len(tried) <= MOST_AGAIN and left > 2 * AGAIN:
                self._again(fatal[0], around, record, log)
        why = ""
        if ended.timed_out or ended.status not in (0, 1):
            why = ending_of(ended, seconds)
        outcome = self._outcome(read_events(record), why, ended.output)
        outcome.seconds, outcome.output = time.monotonic() - began, log.read_text(errors="replace")
        return outcome

    def _again(self, case: str, around: Surroundings, record: Path, log: Path) -> None:
        command = _options_command(around, "--only", case)
        text = run_alone(command, AGAIN, environment_of(around), log, "it held")
        with record.open("a") as file:
            file.write(json.dumps({"event": "again", "case": case, "text": text}) + "\n")

    def _outcome(self, events: Sequence[dict[str, Any]], why: str, output: str) -> Outcome:
        failures, shown = [], []
        for event in events:
            if event["event"] == "held":
                shown.append(event["line"])
            elif event["event"] in ("failed", "broken"):
                failures.append(Failure(event["case"], event["text"], event.get("launches", [])))
        told = {failure.where for failure in failures}
        for case in _unfinished(events):
            if case not in told:
                failures.append(Failure(case, "its process was gone"))
        by_case = {failure.where: failure for failure in failures}
        for event in events:
            if event["event"] == "again":
                by_case[event["case"]].again = event["text"]
        if not shown and not why:
            why = "no option held"
        if why and not failures:
            failures = [Failure(self.name, last_lines(output))]
        counts = {"passed": len(shown), "failed": len(failures)}
        return Outcome(self.name, why, 0.0, counts, failures, shown)


def _options_command(around: Surroundings, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "bench.gpu_options", *arguments]
    if around.rehearsed:
        command.append("--tiny")
    if around.fault:
        command.append(f"--plant-fault={around.fault}")
    return command


def environment_of(around: Surroundings) -> dict[str, str]:
    """Return the environment of the options: without a GPU one of them has its kernels interpreted."""
    if not around.rehearsed:
        return around.environment
    return {**around.environment, "TRITON_INTERPRET": "1"}


def _unfinished(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cases that began and were not heard of again."""
    ended = {event["case"] for event in events if event["event"] in ("held", "failed", "broken")}
    began = [event["case"] for event in events if event["event"] == "began"]
    return [case for case in began if case not in ended]


def _fatal(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cases that ended their process."""
    broken = [event["case"] for event in events if event["event"] == "broken"]
    return broken + _unfinished(events)


@dataclass(frozen=True)
class Benches:
    """The benches of a file whose names hold ``keyword``, in a process of their own; their rows go to
    ``results`` as they come.
    """

    name: str
    file: str
    seconds: float
    keyword: str = ""
    on_a_gpu_alone: bool = False

    def rows_of(self, around: Surroundings) -> Path:
        return around.file(self.name, ".json")

    def command(self, around: Surroundings, seconds: float) -> list[str]:
        command = [sys.executable, "-m", "pytest", f"bench/{self.file}", "-p", "no:cacheprovider"]
        # Between the last bench that begins and the end of the process there is some of the time, too.
        budget = max(1.0, 0.8 * seconds)
        command += ["--benchmark-only", "-q", f"--bench-budget={budget:.0f}"]
        command.append(f"--benchmark-json={self.rows_of(around)}")
        keyword = self.keyword
        if around.rehearsed:
            command.append("--bench-quick")
            if not keyword:
                keyword = "bench"
            keyword = f"({keyword}) and not compiled and not import"
        if around.fault:
            command.append("--plant-fault")
        if keyword:
            command += ["-k", keyword]
        return command

    def run(self, around: Surroundings, seconds: float) -> Outcome:
        if around.rehearsed and self.on_a_gpu_alone:
            return Outcome(self.name, note="not rehearsed: it exists on a GPU alone")
        rows, log = self.rows_of(around), around.file(self.name, ".log")
        # pytest cuts its lines to the width of a terminal.
        environment = {**around.environment, "COLUMNS": "2000"}
        ended = run_process(self.command(around, seconds), seconds, environment, log)
        failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", ended.output, re.MULTILINE)
        failures = [Failure(test, text) for test, text in failed]
        found = []
        if rows.exists():
            found = read_results(rows).rows
        counts = {"passed": len(found), "failed": len(failures)}
        why = ""
        if ended.status != 1 or not failures:
            why = ending_of(ended, seconds)
        if not found and not why and not failures:
            why = "nothing was measured"
        if why and not failures:
            failures = [Failure(self.name, last_lines(ended.output))]
        shown = [line for line in lines_of(found) if line.strip()]
        output = log.read_text(errors="replace")
        return Outcome(self.name, why, ended.seconds, counts, failures, shown, output)


Part = Tests | Benches | Command | Options
