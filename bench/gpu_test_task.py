"""Parts of the GPU suite that are tests: one pytest with its workers, and again what broke the device."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_outcome import AGAIN, MOST_AGAIN, Failure, Outcome, Surroundings, last_lines, run_alone
from bench.launches import breaks_the_device
from bench.machine import ROOT
from bench.on_device import BROKEN, read_record
from bench.processes import Ended, ending_of, run_process

NO_MEMORY = "out of memory"
CRASHED = "crashed while running"
# Seconds without which a second try does not begin.
LEAST_AGAIN = 5.0


@dataclass(frozen=True)
class Tests:
    """Test files in one pytest: those for a GPU whose names hold one of ``words``, or all others. ``workers``
    processes share them.
    """

    # None of pytest's own classes.
    __test__ = False

    name: str
    files: tuple[str, ...]
    seconds: float
    words: tuple[str, ...] = ()
    rest: tuple[str, ...] = ()
    workers: int = 12
    rehearsed: int = 2
    rehearsed_by: int = 1

    def command(self, around: Surroundings, record: Path) -> list[str]:
        command = [sys.executable, "-m", "pytest", *self.files]
        command += [f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
        command += ["-p", "bench.on_device", f"--device-record={record}", "-q", "--tb=short", "-rfE"]
        # A test that hangs in CUDA hears no signal; the thread ends its process, and another takes its place.
        limit = max(20, min(90, self.seconds / 2))
        command += ["-o", f"timeout={limit:.0f}", "-o", "timeout_method=thread"]
        command += [f"--device-words={','.join(self.words)}", f"--device-rest={','.join(self.rest)}"]
        if around.rehearsed:
            command.append(f"--rehearse={self.rehearsed}")
        if around.fault:
            command.append(f"--plant-device-fault={around.fault}")
        return command

    def run(self, around: Surroundings, seconds: float) -> Outcome:
        """Run them; a test that broke the device, or its process, is run again alone, where each launch waits
        for the device.
        """
        began = time.monotonic()
        record, log = around.file(self.name, ".jsonl"), around.file(self.name, ".log")
        command, environment, workers = self.command(around, record), around.environment, self.workers
        if around.rehearsed:
            # The interpreter's work is short: starting more processes than one takes longer, but for the part
            # that shows that it works.
            workers = self.rehearsed_by
        if workers > 1:
            command += ["-n", str(workers), "--dist", "load"]
            # Workers share the processor's cores.
            environment = {**environment, "OMP_NUM_THREADS": "1"}
        ended = run_process(command, seconds, environment, log)
        outcome = outcome_of(self.name, ended, seconds, read_record(record))
        if workers > 1:
            self._without_neighbours(outcome, around, seconds - (time.monotonic() - began), log)
        crashed = [failure for failure in outcome.failures if _crashed(failure)]
        for failure in crashed[:MOST_AGAIN]:
            left = seconds - (time.monotonic() - began)
            failure.again = self._again(failure.where, around, left, log)
        outcome.seconds = time.monotonic() - began
        outcome.output = log.read_text(errors="replace")
        return outcome

    def _without_neighbours(self, outcome: Outcome, around: Surroundings, seconds: float, log: Path) -> None:
        """Run what found no memory beside the others' once more, one by one: its new result replaces the old
        one in ``outcome``.
        """
        crowded, others = [], []
        for failure in outcome.failures:
            if NO_MEMORY in failure.text:
                crowded.append(failure)
            else:
                others.append(failure)
        if not crowded or seconds < LEAST_AGAIN:
            return
        alone = Tests(f"{self.name} alone", tuple(failure.where for failure in crowded), seconds)
        record = around.file(alone.name, ".jsonl")
        command = alone.command(dataclasses.replace(around, rehearsed=False), record)
        ended = run_process(command, seconds, around.environment, log)
        second = outcome_of(alone.name, ended, seconds, read_record(record))
        outcome.failures = others + second.failures
        outcome.counts["passed"] += second.counts["passed"]
        outcome.counts["failed"] = len(outcome.failures)
        if not outcome.why and not second.failures:
            outcome.why = second.why
        outcome.note = f"{len(crowded)} found no memory beside others and ran again alone"

    def _again(self, test: str, around: Surroundings, left: float, log: Path) -> str:
        if left <= LEAST_AGAIN:
            return "no time to run it again"
        file, _, name = test.partition("::")
        seconds = min(AGAIN, left)
        one = Tests(self.name, (f"{self._as_given(file)}::{name}",), seconds)
        command = one.command(dataclasses.replace(around, rehearsed=False), around.work / "again.jsonl")
        return run_alone(command, seconds, around.environment, log, "passed")

    def _as_given(self, file: str) -> str:
        """Return how ``file`` was given: pytest names files by their place below the checkout; as they were
        given they are found from anywhere.
        """
        for given in self.files:
            if Path(given).name == Path(file).name:
                return given
        return self.files[0]


def _crashed(failure: Failure) -> bool:
    if breaks_the_device(failure.text):
        return True
    return CRASHED in failure.text or "did not end" in failure.text


def outcome_of(name: str, ended: Ended, seconds: float, events: Sequence[dict[str, Any]]) -> Outcome:
    """Return what became of the tests of one pytest, from what was written down while it ran."""
    counts = dict.fromkeys(("passed", "failed", "unfinished", "skipped"), 0)
    failures: dict[str, Failure] = {}
    for event in events:
        kind, test = event["event"], event["test"]
        if kind in ("failed", "broken"):
            known = failures.get(test)
            # That the worker crashed says less than what the worker said itself.
            if known is None or CRASHED in known.text:
                failures[test] = Failure(test, event["text"], event["launches"])
        elif kind == "passed":
            counts["passed"] += 1
        elif kind != "started":
            counts["skipped"] += 1
    counts["failed"] = len(failures)
    why = ending_of(ended, seconds)
    for test in _unfinished(events):
        how = why
        if not how:
            how = "its process was gone"
        counts["unfinished"] += 1
        failures[test] = Failure(test, f"it did not end: {how}")
    if ended.status == 1 and failures:
        why = ""
    elif ended.status == BROKEN:
        why = "a fault of the device ended the process"
    elif not why and not counts["passed"]:
        why = "no test passed"
    if why and not failures:
        failures[name] = Failure(name, last_lines(ended.output))
    return Outcome(name, why, ended.seconds, counts, list(failures.values()))


def _unfinished(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the tests that began and were not heard of again, in the order in which they began."""
    done = {event["test"] for event in events if event["event"] != "started"}
    known = dict.fromkeys(event["test"] for event in events)
    return [test for test in known if test not in done]
