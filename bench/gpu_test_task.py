"""Run tests as a part of the GPU suite.

They run in one pytest process with its workers. Tests that crashed the device or ran out of memory are rerun.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu_outcome import MAX_RERUNS, RERUN_SECONDS, Context, Failure, Outcome, last_lines, run_alone
from bench.launches import is_device_fault
from bench.machine import ROOT
from bench.on_device import BROKEN, read_record
from bench.processes import ProcessResult, ending_of, run_process

NO_MEMORY = "out of memory"
CRASHED = "crashed while running"
# A rerun starts only if at least this many seconds remain.
LEAST_RERUN = 5.0


@dataclass(frozen=True)
class Tests:
    """A part that runs test files in one pytest with ``workers`` processes.

    With ``keywords``, only the GPU tests whose names contain one of them run; otherwise all tests run except
    those whose names contain one of ``exclude``. ``rehearsed_tests`` is the number of tests per file in a
    rehearsal, and ``rehearsal_workers`` the number of its processes.
    """

    # Keeps pytest from collecting this class as tests.
    __test__ = False

    name: str
    files: tuple[str, ...]
    seconds: float
    keywords: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    workers: int = 12
    rehearsed_tests: int = 2
    rehearsal_workers: int = 1

    def command(self, context: Context, record: Path) -> list[str]:
        command = [sys.executable, "-m", "pytest", *self.files]
        command += [f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
        command += ["-p", "bench.on_device", f"--device-record={record}", "-q", "--tb=short", "-rfE"]
        # A test that hangs in CUDA cannot handle signals. With the thread method its process is ended, and
        # another one takes its place.
        limit = max(20, min(90, self.seconds / 2))
        command += ["-o", f"timeout={limit:.0f}", "-o", "timeout_method=thread"]
        command += [f"--device-words={','.join(self.keywords)}", f"--device-rest={','.join(self.exclude)}"]
        if context.rehearsed:
            command.append(f"--rehearse={self.rehearsed_tests}")
        if context.fault:
            command.append(f"--plant-device-fault={context.fault}")
        return command

    def run(self, context: Context, seconds: float) -> Outcome:
        """Run the tests for at most ``seconds`` and return the outcome.

        A test that crashed the device or its process is rerun alone, with blocking launches.
        """
        started = time.monotonic()
        record, log = context.file(self.name, ".jsonl"), context.file(self.name, ".log")
        command, environment, workers = self.command(context, record), context.environment, self.workers
        if context.rehearsed:
            # The rehearsed tests are short, so starting several processes would take longer. Only one part
            # uses several, to show that it works.
            workers = self.rehearsal_workers
        if workers > 1:
            command += ["-n", str(workers), "--dist", "load"]
            # The workers share the CPU cores.
            environment = {**environment, "OMP_NUM_THREADS": "1"}
        result = run_process(command, seconds, environment, log)
        outcome = outcome_of(self.name, result, seconds, read_record(record))
        if workers > 1:
            self._rerun_out_of_memory(outcome, context, seconds - (time.monotonic() - started), log)
        crashed = [failure for failure in outcome.failures if _crashed(failure)]
        for failure in crashed[:MAX_RERUNS]:
            remaining = seconds - (time.monotonic() - started)
            failure.again = self._rerun(failure.where, context, remaining, log)
        outcome.seconds = time.monotonic() - started
        outcome.output = log.read_text(errors="replace")
        return outcome

    def _rerun_out_of_memory(self, outcome: Outcome, context: Context, seconds: float, log: Path) -> None:
        """Rerun the tests that ran out of memory one by one, and replace their results in ``outcome``.

        They had failed while other tests were using the same GPU.
        """
        out_of_memory, others = [], []
        for failure in outcome.failures:
            if NO_MEMORY in failure.text:
                out_of_memory.append(failure)
            else:
                others.append(failure)
        if not out_of_memory or seconds < LEAST_RERUN:
            return
        alone = Tests(f"{self.name} alone", tuple(failure.where for failure in out_of_memory), seconds)
        record = context.file(alone.name, ".jsonl")
        command = alone.command(dataclasses.replace(context, rehearsed=False), record)
        result = run_process(command, seconds, context.environment, log)
        second = outcome_of(alone.name, result, seconds, read_record(record))
        outcome.failures = others + second.failures
        outcome.counts["passed"] += second.counts["passed"]
        outcome.counts["failed"] = len(outcome.failures)
        if not outcome.why and not second.failures:
            outcome.why = second.why
        outcome.note = f"{len(out_of_memory)} ran out of memory beside other tests and were rerun alone"

    def _rerun(self, test: str, context: Context, remaining: float, log: Path) -> str:
        if remaining <= LEAST_RERUN:
            return "no time to rerun it"
        file, _, name = test.partition("::")
        seconds = min(RERUN_SECONDS, remaining)
        one = Tests(self.name, (f"{self._original_path(file)}::{name}",), seconds)
        command = one.command(dataclasses.replace(context, rehearsed=False), context.work / "again.jsonl")
        return run_alone(command, seconds, context.environment, log, "passed")

    def _original_path(self, file: str) -> str:
        """Return the entry of ``files`` for ``file``.

        pytest reports paths relative to the checkout, while the original paths work from any folder.
        """
        for original in self.files:
            if Path(original).name == Path(file).name:
                return original
        return self.files[0]


def _crashed(failure: Failure) -> bool:
    if is_device_fault(failure.text):
        return True
    return CRASHED in failure.text or "did not finish" in failure.text


def outcome_of(name: str, result: ProcessResult, seconds: float, events: Sequence[dict[str, Any]]) -> Outcome:
    """Return the outcome of the tests of one pytest process, from the events recorded while it ran."""
    counts = dict.fromkeys(("passed", "failed", "unfinished", "skipped"), 0)
    failures: dict[str, Failure] = {}
    for event in events:
        kind, test = event["event"], event["test"]
        if kind in ("failed", "broken"):
            earlier = failures.get(test)
            # The worker's own report is more informative than the message that the worker crashed.
            if earlier is None or CRASHED in earlier.text:
                failures[test] = Failure(test, event["text"], event["launches"])
        elif kind == "passed":
            counts["passed"] += 1
        elif kind != "started":
            counts["skipped"] += 1
    counts["failed"] = len(failures)
    reason = ending_of(result, seconds)
    for test in _unfinished(events):
        ending = reason
        if not ending:
            ending = "its process ended without a result"
        counts["unfinished"] += 1
        failures[test] = Failure(test, f"it did not finish: {ending}")
    if result.status == 1 and failures:
        reason = ""
    elif result.status == BROKEN:
        reason = "a device fault ended the process"
    elif not reason and not counts["passed"]:
        reason = "no test passed"
    if reason and not failures:
        failures[name] = Failure(name, last_lines(result.output))
    return Outcome(name, reason, result.seconds, counts, list(failures.values()))


def _unfinished(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the tests that started but have no result, in the order in which they started."""
    finished = {event["test"] for event in events if event["event"] != "started"}
    tests = dict.fromkeys(event["test"] for event in events)
    return [test for test in tests if test not in finished]
