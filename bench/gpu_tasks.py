"""The kinds of parts in the stages of the GPU suite.

A part runs tests, benches, every option of the engine, or a command. Each part runs in its own processes with
a time limit. It returns an ``Outcome`` even if its processes crash or are killed, based on everything that
they had recorded by then.
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
    MAX_RERUNS,
    RERUN_SECONDS,
    Context,
    Failure,
    Outcome,
    last_lines,
    lines_in,
    run_alone,
)
from bench.gpu_test_task import Tests
from bench.on_device import read_events
from bench.processes import ending_of, run_process

NEEDS_GPU = "not rehearsed, because it needs a GPU"


@dataclass(frozen=True)
class Command:
    """A part that runs one command. Its exit code shows whether it succeeded.

    The last ``shown`` lines of its output go into the summary. With ``gpu_only`` it is not rehearsed, because
    it has no size that is small enough.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    shown: int = 6
    in_rehearsal: tuple[str, ...] = ()
    with_fault: tuple[str, ...] = ()
    gpu_only: bool = False

    def run(self, context: Context, seconds: float) -> Outcome:
        if context.rehearsed and self.gpu_only:
            return Outcome(self.name, note=NEEDS_GPU)
        log = context.file(self.name, ".log")
        arguments = self.arguments
        if context.rehearsed:
            arguments += self.in_rehearsal
        if context.fault:
            arguments += self.with_fault
        command = [argument.replace("RESULTS", str(context.results)) for argument in arguments]
        result = run_process([sys.executable, *command], seconds, context.environment, log)
        outcome = Outcome(self.name, ending_of(result, seconds), result.seconds)
        if outcome.why:
            outcome.failures = [Failure(self.name, last_lines(result.output))]
        outcome.shown = lines_in(result.output)[-self.shown :]
        outcome.output = log.read_text(errors="replace")
        return outcome


@dataclass(frozen=True)
class Options:
    """A part that runs real iterations with every option of the engine.

    All options run in one process. If a fault ends that process, a new one continues with the next option.
    """

    name: str
    seconds: float

    def run(self, context: Context, seconds: float) -> Outcome:
        started, record, log = time.monotonic(), context.work / "options.jsonl", context.work / "options.log"
        command = _options_command(context, "--record", str(record))
        tried: set[str] = set()
        while True:
            remaining = seconds - (time.monotonic() - started)
            result = run_process(command, remaining, environment_of(context), log)
            # Cases that ended their process. The next process skips every case that has started.
            fatal = [case for case in _fatal(read_events(record)) if case not in tried]
            if result.timed_out or not fatal:
                break
            tried.update(fatal)
            if len(tried) <= MAX_RERUNS and remaining > 2 * RERUN_SECONDS:
                self._rerun(fatal[0], context, record, log)
        reason = ""
        if result.timed_out or result.status not in (0, 1):
            reason = ending_of(result, seconds)
        outcome = self._outcome(read_events(record), reason, result.output)
        outcome.seconds, outcome.output = time.monotonic() - started, log.read_text(errors="replace")
        return outcome

    def _rerun(self, case: str, context: Context, record: Path, log: Path) -> None:
        command = _options_command(context, "--only", case)
        text = run_alone(command, RERUN_SECONDS, environment_of(context), log, "it passed")
        with record.open("a") as file:
            file.write(json.dumps({"event": "again", "case": case, "text": text}) + "\n")

    def _outcome(self, events: Sequence[dict[str, Any]], reason: str, output: str) -> Outcome:
        failures, shown = [], []
        for event in events:
            if event["event"] == "held":
                shown.append(event["line"])
            elif event["event"] in ("failed", "broken"):
                failures.append(Failure(event["case"], event["text"], event.get("launches", [])))
        reported = {failure.where for failure in failures}
        for case in _unfinished(events):
            if case not in reported:
                failures.append(Failure(case, "its process ended without a result"))
        by_case = {failure.where: failure for failure in failures}
        for event in events:
            if event["event"] == "again":
                by_case[event["case"]].again = event["text"]
        if not shown and not reason:
            reason = "no option passed"
        if reason and not failures:
            failures = [Failure(self.name, last_lines(output))]
        counts = {"passed": len(shown), "failed": len(failures)}
        return Outcome(self.name, reason, 0.0, counts, failures, shown)


def _options_command(context: Context, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "bench.gpu_options", *arguments]
    if context.rehearsed:
        command.append("--tiny")
    if context.fault:
        command.append(f"--plant-fault={context.fault}")
    return command


def environment_of(context: Context) -> dict[str, str]:
    """Return the environment for the options; in a rehearsal, kernels run through Triton's interpreter."""
    if not context.rehearsed:
        return context.environment
    return {**context.environment, "TRITON_INTERPRET": "1"}


def _unfinished(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cases that started but have no result."""
    finished = {event["case"] for event in events if event["event"] in ("held", "failed", "broken")}
    started = [event["case"] for event in events if event["event"] == "began"]
    return [case for case in started if case not in finished]


def _fatal(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cases that ended their process."""
    broken = [event["case"] for event in events if event["event"] == "broken"]
    return broken + _unfinished(events)


@dataclass(frozen=True)
class Benches:
    """A part that runs the benches of one file that match ``keyword``.

    After every bench, the rows so far are written to the file that ``rows_of`` returns.
    """

    name: str
    file: str
    seconds: float
    keyword: str = ""
    gpu_only: bool = False

    def rows_of(self, context: Context) -> Path:
        return context.file(self.name, ".json")

    def command(self, context: Context, seconds: float) -> list[str]:
        command = [sys.executable, "-m", "pytest", f"bench/{self.file}", "-p", "no:cacheprovider"]
        # The budget is shorter than the limit, because the last bench and the shutdown also take time.
        budget = max(1.0, 0.8 * seconds)
        command += ["--benchmark-only", "-q", f"--bench-budget={budget:.0f}"]
        command.append(f"--benchmark-json={self.rows_of(context)}")
        keyword = self.keyword
        if context.rehearsed:
            command.append("--bench-quick")
            if not keyword:
                keyword = "bench"
            keyword = f"({keyword}) and not compiled and not import"
        if context.fault:
            command.append("--plant-fault")
        if keyword:
            command += ["-k", keyword]
        return command

    def run(self, context: Context, seconds: float) -> Outcome:
        if context.rehearsed and self.gpu_only:
            return Outcome(self.name, note=NEEDS_GPU)
        rows, log = self.rows_of(context), context.file(self.name, ".log")
        # pytest truncates its lines to the width of the terminal.
        environment = {**context.environment, "COLUMNS": "2000"}
        result = run_process(self.command(context, seconds), seconds, environment, log)
        failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", result.output, re.MULTILINE)
        failures = [Failure(test, text) for test, text in failed]
        measured = []
        if rows.exists():
            measured = read_results(rows).rows
        counts = {"passed": len(measured), "failed": len(failures)}
        reason = ""
        if result.status != 1 or not failures:
            reason = ending_of(result, seconds)
        if not measured and not reason and not failures:
            reason = "nothing was measured"
        if reason and not failures:
            failures = [Failure(self.name, last_lines(result.output))]
        shown = [line for line in lines_of(measured) if line.strip()]
        output = log.read_text(errors="replace")
        return Outcome(self.name, reason, result.seconds, counts, failures, shown, output)


Part = Tests | Benches | Command | Options
