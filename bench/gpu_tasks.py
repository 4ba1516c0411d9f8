"""The parts of the GPU suite's stages, each in processes of its own with a limit: pytest, every option of the
engine, or a command.

A part gives an ``Outcome`` whatever becomes of its processes: what they had written down by then counts.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.figures import lines_of, read_results
from bench.launches import breaks_the_device
from bench.machine import ROOT
from bench.on_device import BROKEN, read_events, read_record
from bench.processes import Ended, ending_of, run_process

# Seconds for one test that is run again alone.
AGAIN = 45.0
# Faults that are looked at again; the rest of a run would go by otherwise.
MOST_AGAIN = 2
NO_MEMORY = "out of memory"


@dataclass
class Failure:
    """One thing that failed: where, what was said, the launches before it, and what a second try added."""

    where: str
    text: str
    launches: list[dict[str, Any]] = field(default_factory=list)
    again: str = ""


@dataclass
class Outcome:
    """What came of a part. ``counts``: of its tests or cases. ``shown``: lines for the summary. ``why`` it
    did not hold, "" if it did.
    """

    name: str
    why: str = ""
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    output: str = ""
    note: str = ""

    @property
    def holds(self) -> bool:
        return not self.why and not self.failures


@dataclass(frozen=True)
class Surroundings:
    """What all parts share: environment, a folder for their files, results, and what is asked for."""

    work: Path
    results: Path
    environment: dict[str, str]
    rehearsed: bool = False
    fault: str | None = None


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
        given = [
            "-p",
            "no:cacheprovider",
            "-p",
            "bench.on_device",
            f"--device-record={record}",
            "-q",
            "--tb=short",
            "-rfE",
        ]
        # A test that hangs in CUDA hears no signal; the thread ends its process, and another takes its place.
        given += ["-o", f"timeout={max(20, min(90, self.seconds / 2)):.0f}", "-o", "timeout_method=thread"]
        given += [f"--device-words={','.join(self.words)}", f"--device-rest={','.join(self.rest)}"]
        if around.rehearsed:
            given.append(f"--rehearse={self.rehearsed}")
        if around.fault:
            given.append(f"--plant-device-fault={around.fault}")
        rooted = [f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml")]
        return [sys.executable, "-m", "pytest", *self.files, *rooted, *given]

    def run(self, around: Surroundings, seconds: float) -> Outcome:
        """Run them; a test that broke the device, or its process, is run again alone, where each launch waits
        for the device.
        """
        began, record = time.monotonic(), around.work / f"{self.name.replace(' ', '_')}.jsonl"
        log = record.with_suffix(".log")
        # The interpreter's work is short: starting more processes than one takes longer, but for the part
        # that shows that it works.
        workers = self.rehearsed_by if around.rehearsed else self.workers
        spread = ["-n", str(workers), "--dist", "load"] if workers > 1 else []
        # Workers share the processor's cores.
        environment = {**around.environment, "OMP_NUM_THREADS": "1"} if workers > 1 else around.environment
        ended = run_process([*self.command(around, record), *spread], seconds, environment, log)
        outcome = outcome_of(self.name, ended, seconds, read_record(record))
        if workers > 1:
            self._without_neighbours(outcome, around, seconds - (time.monotonic() - began), log)
        for failure in [f for f in outcome.failures if _crashed(f)][:MOST_AGAIN]:
            left = seconds - (time.monotonic() - began)
            failure.again = (
                self._again(failure.where, around, min(AGAIN, left), log)
                if left > 5
                else "no time to run it again"
            )
        outcome.seconds = time.monotonic() - began
        outcome.output = log.read_text(errors="replace")
        return outcome

    def _without_neighbours(self, outcome: Outcome, around: Surroundings, seconds: float, log: Path) -> None:
        """Run what found no memory beside the others' once more, one by one: its new result replaces the old
        one in ``outcome``.
        """
        crowded = [failure for failure in outcome.failures if NO_MEMORY in failure.text]
        if not crowded or seconds < 5:
            return
        alone = Tests(f"{self.name} alone", tuple(failure.where for failure in crowded), seconds)
        record = around.work / f"{self.name.replace(' ', '_')}_alone.jsonl"
        ended = run_process(
            alone.command(dataclasses.replace(around, rehearsed=False), record),
            seconds,
            around.environment,
            log,
        )
        second = outcome_of(alone.name, ended, seconds, read_record(record))
        outcome.failures = [
            failure for failure in outcome.failures if failure not in crowded
        ] + second.failures
        outcome.counts["passed"] += second.counts["passed"]
        outcome.counts["failed"] = len(outcome.failures)
        outcome.why = outcome.why or (second.why if not second.failures else "")
        outcome.note = f"{len(crowded)} found no memory beside others and ran again alone"

    def _again(self, test: str, around: Surroundings, seconds: float, log: Path) -> str:
        launches = around.work / "launches.jsonl"
        launches.unlink(missing_ok=True)
        record = around.work / "again.jsonl"
        # pytest names files by their place below the checkout; as they were given they are found from
        # anywhere.
        file, _, name = test.partition("::")
        given = next((each for each in self.files if Path(each).name == Path(file).name), self.files[0])
        one = Tests(self.name, (f"{given}::{name}",), seconds)
        command = [
            *one.command(dataclasses.replace(around, rehearsed=False), record),
            f"--launch-log={launches}",
        ]
        ended = run_process(command, seconds, {**around.environment, "CUDA_LAUNCH_BLOCKING": "1"}, log)
        last = launches.read_text().splitlines()[-1:] if launches.exists() else []
        how = ending_of(ended, seconds) or "passed"
        return f"alone, with CUDA_LAUNCH_BLOCKING=1: {how}; last launch {last[0] if last else 'none'}"


def _crashed(failure: Failure) -> bool:
    return (
        breaks_the_device(failure.text)
        or "crashed while running" in failure.text
        or "did not end" in failure.text
    )


def outcome_of(name: str, ended: Ended, seconds: float, events: Sequence[dict[str, Any]]) -> Outcome:
    """Return what became of the tests of one pytest, from what was written down while it ran."""
    counts = dict.fromkeys(("passed", "failed", "unfinished", "skipped"), 0)
    failures: dict[str, Failure] = {}
    open_tests: dict[str, None] = {}
    for event in events:
        if event["event"] == "started":
            open_tests[event["test"]] = None
            continue
        if event["event"] in ("failed", "broken"):
            known = failures.get(event["test"])
            # That the worker crashed says less than what the worker said itself.
            if known is None or "crashed while running" in known.text:
                failures[event["test"]] = Failure(event["test"], event["text"], event["launches"])
        elif event["event"] == "passed":
            counts["passed"] += 1
        else:
            counts["skipped"] += 1
    done = {event["test"] for event in events if event["event"] != "started"}
    counts["failed"] = len(failures)
    for test in [test for test in open_tests if test not in done]:
        counts["unfinished"] += 1
        failures[test] = Failure(
            test, f"it did not end: {ending_of(ended, seconds) or 'its process was gone'}"
        )
    why = ending_of(ended, seconds)
    if ended.status == 1 and failures:
        why = ""
    elif ended.status == BROKEN:
        why = "a fault of the device ended the process"
    elif not why and not counts["passed"]:
        why = "no test passed"
    if why and not failures:
        failures[name] = Failure(name, last_lines(ended.output))
    return Outcome(name, why, ended.seconds, counts, list(failures.values()))


def last_lines(output: str, count: int = 25) -> str:
    """Return the last lines of ``output`` that are not empty: what a process without any result had to
    say."""
    return "\n".join([line for line in output.splitlines() if line.strip()][-count:])


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
        log = around.work / f"{self.name.replace(' ', '_')}.log"
        extra = (*(self.in_rehearsal if around.rehearsed else ()), *(self.with_fault if around.fault else ()))
        command = [argument.replace("RESULTS", str(around.results)) for argument in (*self.arguments, *extra)]
        ended = run_process([sys.executable, *command], seconds, around.environment, log)
        lines = [line for line in ended.output.splitlines() if line.strip()]
        why = ending_of(ended, seconds)
        failures = [Failure(self.name, last_lines(ended.output))] if why else []
        return Outcome(
            self.name, why, ended.seconds, {}, failures, lines[-self.shown :], log.read_text(errors="replace")
        )


@dataclass(frozen=True)
class Options:
    """Real iterations of every option of the engine, one process for all as long as it lives: after a fault
    the next goes on behind it.
    """

    name: str
    seconds: float

    def run(self, around: Surroundings, seconds: float) -> Outcome:
        began, record, log = time.monotonic(), around.work / "options.jsonl", around.work / "options.log"
        command = [sys.executable, "-m", "bench.gpu_options", "--record", str(record)]
        command += ["--tiny"] * around.rehearsed + [f"--plant-fault={around.fault}"] * bool(around.fault)
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
        why = ending_of(ended, seconds) if ended.timed_out or ended.status not in (0, 1) else ""
        outcome = self._outcome(read_events(record), why, ended.output)
        outcome.seconds, outcome.output = time.monotonic() - began, log.read_text(errors="replace")
        return outcome

    def _again(self, case: str, around: Surroundings, record: Path, log: Path) -> None:
        launches = around.work / "launches.jsonl"
        launches.unlink(missing_ok=True)
        command = [sys.executable, "-m", "bench.gpu_options", "--only", case, f"--launch-log={launches}"]
        command += ["--tiny"] * around.rehearsed + [f"--plant-fault={around.fault}"] * bool(around.fault)
        ended = run_process(command, AGAIN, {**environment_of(around), "CUDA_LAUNCH_BLOCKING": "1"}, log)
        last = launches.read_text().splitlines()[-1:] if launches.exists() else ["none"]
        text = (
            f"alone, with CUDA_LAUNCH_BLOCKING=1: {ending_of(ended, AGAIN) or 'it held'}; last launch"
            f" {last[0]}"
        )
        with record.open("a") as file:
            file.write(json.dumps({"event": "again", "case": case, "text": text}) + "\n")

    def _outcome(self, events: Sequence[dict[str, Any]], why: str, output: str) -> Outcome:
        held = [event for event in events if event["event"] == "held"]
        failures = [
            Failure(e["case"], e["text"], e.get("launches", []))
            for e in events
            if e["event"] in ("failed", "broken")
        ]
        told = {failure.where for failure in failures}
        failures += [
            Failure(case, "its process was gone") for case in _unfinished(events) if case not in told
        ]
        for event in events:
            if event["event"] == "again":
                next(failure for failure in failures if failure.where == event["case"]).again = event["text"]
        shown = [event["line"] for event in held]
        if not held:
            why = why or "no option held"
        if why and not failures:
            failures = [Failure(self.name, last_lines(output))]
        return Outcome(self.name, why, 0.0, {"passed": len(held), "failed": len(failures)}, failures, shown)


def environment_of(around: Surroundings) -> dict[str, str]:
    """Return the environment of the options: without a GPU one of them has its kernels interpreted."""
    return {**around.environment, "TRITON_INTERPRET": "1"} if around.rehearsed else around.environment


def _unfinished(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cases that began and were not heard of again."""
    ended = {event["case"] for event in events if event["event"] in ("held", "failed", "broken")}
    return [event["case"] for event in events if event["event"] == "began" and event["case"] not in ended]


def _fatal(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return the cases that ended their process."""
    return [event["case"] for event in events if event["event"] == "broken"] + _unfinished(events)


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
        return around.work / f"{self.name.replace(' ', '_')}.json"

    def run(self, around: Surroundings, seconds: float) -> Outcome:
        if around.rehearsed and self.on_a_gpu_alone:
            return Outcome(self.name, note="not rehearsed: it exists on a GPU alone")
        rows, log = self.rows_of(around), around.work / f"{self.name.replace(' ', '_')}.log"
        # Between the last bench that begins and the end of the process there is some of the time, too.
        given = [
            "--benchmark-only",
            "-q",
            f"--bench-budget={max(1.0, 0.8 * seconds):.0f}",
            f"--benchmark-json={rows}",
        ]
        keyword = self.keyword
        if around.rehearsed:
            given.append("--bench-quick")
            keyword = f"({keyword or 'bench'}) and not compiled and not import"
        given += ["--plant-fault"] * bool(around.fault) + ["-k", keyword] * bool(keyword)
        command = [sys.executable, "-m", "pytest", f"bench/{self.file}", "-p", "no:cacheprovider", *given]
        # pytest cuts its lines to the width of a terminal.
        ended = run_process(command, seconds, {**around.environment, "COLUMNS": "2000"}, log)
        failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", ended.output, re.MULTILINE)
        failures = [Failure(test, text) for test, text in failed]
        why = "" if ended.status == 1 and failures else ending_of(ended, seconds)
        found = read_results(rows).rows if rows.exists() else []
        counts = {"passed": len(found), "failed": len(failures)}
        if not found and not why and not failures:
            why = "nothing was measured"
        if why and not failures:
            failures = [Failure(self.name, last_lines(ended.output))]
        shown = [line for line in lines_of(found) if line.strip()]
        return Outcome(
            self.name, why, ended.seconds, counts, failures, shown, log.read_text(errors="replace")
        )


Part = Tests | Benches | Command | Options
