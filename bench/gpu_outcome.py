"""What the parts of the GPU suite are given, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import ending_of, run_process

# Seconds for one test or case that is run again alone.
AGAIN = 45.0
# Faults that are looked at again; the rest of a run would go by otherwise.
MOST_AGAIN = 2


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

    @property
    def tally(self) -> str:
        return ", ".join(f"{count} {word}" for word, count in self.counts.items() if count)


@dataclass(frozen=True)
class Surroundings:
    """What all parts share: environment, a folder for their files, results, and what is asked for."""

    work: Path
    results: Path
    environment: dict[str, str]
    rehearsed: bool = False
    fault: str | None = None

    def file(self, part: str, suffix: str) -> Path:
        """Return where ``part`` has a file of its own."""
        return self.work / f"{part.replace(' ', '_')}{suffix}"


def last_lines(output: str, count: int = 25) -> str:
    """Return the last lines of ``output`` that are not empty: what a process without any result had to
    say."""
    return "\n".join(lines_in(output)[-count:])


def lines_in(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.strip()]


def run_alone(
    command: Sequence[str], seconds: float, environment: dict[str, str], log: Path, well: str
) -> str:
    """Run ``command``, which takes ``--launch-log``, where each launch waits for the device; return how it
    ended (``well`` where it ended well), and the last launch.
    """
    launches = log.with_name("launches.jsonl")
    launches.unlink(missing_ok=True)
    logged = [*command, f"--launch-log={launches}"]
    ended = run_process(logged, seconds, {**environment, "CUDA_LAUNCH_BLOCKING": "1"}, log)
    how, last = ending_of(ended, seconds), "none"
    if not how:
        how = well
    if launches.exists():
        for line in launches.read_text().splitlines():
            last = line
    return f"alone, with CUDA_LAUNCH_BLOCKING=1: {how}; last launch {last}"
