"""The context in which the parts of the GPU suite run, and their outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import ending_of, run_process

# Time limit in seconds for rerunning one test or case alone.
RERUN_SECONDS = 45.0
# At most this many crashes are rerun, so that most of the time remains for the other tests.
MAX_RERUNS = 2


@dataclass
class Failure:
    """A test or case that failed.

    ``where`` is its name, ``text`` is the error, ``launches`` are the kernel launches before it, and
    ``again`` is the result of rerunning it alone.
    """

    where: str
    text: str
    launches: list[dict[str, Any]] = field(default_factory=list)
    again: str = ""


@dataclass
class Outcome:
    """The outcome of a part of the GPU suite.

    ``counts`` are the numbers of its tests or cases by result, and ``shown`` are lines for the summary.
    ``why`` is the reason if the part as a whole failed, otherwise "".
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

    @property
    def tally(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in self.counts.items() if count)


@dataclass(frozen=True)
class Context:
    """The settings that all parts of the GPU suite share.

    ``work`` is the folder for their files, ``results`` the folder for results, and ``environment`` the
    environment of their processes. ``rehearsed`` is true in a rehearsal, and ``fault`` is the kind of fault
    that is injected, if any.
    """

    work: Path
    results: Path
    environment: dict[str, str]
    rehearsed: bool = False
    fault: str | None = None

    def file(self, part: str, suffix: str) -> Path:
        """Return the path of the file of ``part`` that ends with ``suffix``."""
        return self.work / f"{part.replace(' ', '_')}{suffix}"


def last_lines(output: str, count: int = 25) -> str:
    """Return the last ``count`` non-empty lines of ``output``, to report a process that gave no result."""
    return "\n".join(lines_in(output)[-count:])


def lines_in(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.strip()]


def run_alone(
    command: Sequence[str], seconds: float, environment: dict[str, str], log: Path, success: str
) -> str:
    """Run ``command`` with blocking launches, and return a line with its result and the last launch.

    ``command`` must accept ``--launch-log``. ``success`` is the text for a run that succeeded.
    """
    launches = log.with_name("launches.jsonl")
    launches.unlink(missing_ok=True)
    with_log = [*command, f"--launch-log={launches}"]
    result = run_process(with_log, seconds, {**environment, "CUDA_LAUNCH_BLOCKING": "1"}, log)
    ending, last = ending_of(result, seconds), "none"
    if not ending:
        ending = success
    if launches.exists():
        for line in launches.read_text().splitlines():
            last = line
    return f"alone, with CUDA_LAUNCH_BLOCKING=1: {ending}; last launch {last}"
