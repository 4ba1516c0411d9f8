"""What the GPU suite prints: a line a part as it ends, and a summary that fits into what comes back from a
machine elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Sequence

from bench.gpu_outcome import Failure, Outcome

# A summary stays below this, and all that is printed below MOST: longer output loses its beginning.
MOST_OF_A_SUMMARY, MOST, PROGRESS = 7_800, 19_500, 2_500
WIDTH = 150


class Printer:
    """Prints lines as they come, until there is just room left for the summaries."""

    def __init__(self, summaries: int = 1) -> None:
        self.most = min(MOST_OF_A_SUMMARY, (MOST - PROGRESS) // summaries)
        self.room = MOST - self.most * summaries

    def line(self, text: str) -> None:
        text = text[:WIDTH]
        if len(text) + 1 < self.room:
            self.room -= len(text) + 1
            self.summary([text])

    def summary(self, lines: Sequence[str]) -> None:
        # Whoever listened may be gone; what is known is in the files.
        with contextlib.suppress(OSError):
            print("\n".join(lines), flush=True)


def summary(
    about: dict[str, str],
    outcomes: Sequence[Outcome],
    planned: int,
    seconds: float,
    files: Sequence[str],
    most: int = MOST_OF_A_SUMMARY,
) -> list[str]:
    """Return the lines that end a stage: the verdict, the machine, a line a part, failures with what it takes
    to mend them, the files.

    ``planned``: how many parts the stage has; as long as fewer are known it is unfinished. ``most``:
    characters.
    """
    bad = [outcome for outcome in outcomes if not outcome.holds]
    lines = [f"# stage {about['stage']}: {_verdict(len(bad), len(outcomes), planned)}, {seconds:.0f} s"]
    for key, value in about.items():
        if key != "stage":
            lines.append(f"{key}: {value}")
    lines.append("")
    for outcome in outcomes:
        lines.append(_line(outcome))
    tail = ["", f"files: {', '.join(files)}"[:600]]
    lines += _failures(bad, most - _size(lines) - _size(tail) - 200)
    # Figures come in the room that failures leave.
    shown = []
    for outcome in outcomes:
        if outcome.shown:
            shown += ["", f"## {outcome.name}", *outcome.shown]
    lines += _fitting([line[:WIDTH] for line in shown], most - _size(lines) - _size(tail) - 100)
    return lines + tail


def _verdict(bad: int, known: int, planned: int) -> str:
    verdict = f"all {known} parts hold"
    if bad:
        verdict = f"{bad} of {known} parts DO NOT HOLD"
    if known < planned:
        verdict = f"UNFINISHED, {known} of {planned} parts are known; of these {verdict}"
    return verdict


def _line(outcome: Outcome) -> str:
    holds = "FAILS"
    if outcome.holds:
        holds = "holds"
    why = outcome.why
    if not why:
        why = outcome.note
    return f"{holds:<6}{outcome.name:<46}{outcome.tally:<36}{outcome.seconds:5.0f} s  {why}"[:WIDTH]


def _size(lines: Sequence[str]) -> int:
    return sum(len(line) + 1 for line in lines)


def _fitting(lines: Sequence[str], room: int) -> list[str]:
    kept: list[str] = []
    for line in lines:
        if _size(kept) + len(line) + 60 > room:
            return [*kept, f"({len(lines) - len(kept)} more lines are in the files)"]
        kept.append(line)
    return kept


def _failures(bad: Sequence[Outcome], room: int) -> list[str]:
    """Return failures in turns of the parts, those whose error was not told yet before others, each in its
    share of ``room``.
    """
    different: dict[str, Failure] = {}
    for turn in itertools.zip_longest(*(outcome.failures for outcome in bad)):
        for failure in turn:
            if failure is not None:
                # Two parts may have run one test.
                different[failure.where] = failure
    fresh, again, kinds = [], [], set()
    for failure in different.values():
        kind = _kind(failure)
        if kind in kinds:
            again.append(failure)
        else:
            fresh.append(failure)
            kinds.add(kind)
    ordered = fresh + again
    lines: list[str] = []
    for number, failure in enumerate(ordered):
        told = told_of(failure, max(420, room // min(len(ordered), 8)))
        if _size(lines) + _size(told) > room:
            return [*lines, "", f"({len(ordered) - number} more failures are in the files)"]
        lines += told
    return lines


def _kind(failure: Failure) -> str:
    """Return what failures of one cause have in common: the error without its numbers."""
    return re.sub(r"[\d.e+-]+", "", "".join(_errors(failure)))[:100]


def _errors(failure: Failure) -> list[str]:
    """Return the line that names the error, and the last one where there are more: compilers tell the cause
    at the end.
    """
    logged = failure.text.splitlines()
    errors = [line for line in logged if line.startswith("E ")]
    if not errors:
        errors = [line for line in logged if re.match(r"[\w.]*Error\b", line)]
    if not errors:
        errors = logged[-2:]
    return errors[:1] + errors[1:][-1:]


def told_of(failure: Failure, most: int) -> list[str]:
    """Return a failure in at most ``most`` characters: where, its error line, the last launch before it, what
    running it alone said.
    """
    where = f"FAILED {failure.where}"
    lines = [line.strip() for line in _errors(failure)]
    if failure.launches:
        last = failure.launches[-1]
        arguments, configuration = ", ".join(map(str, last["arguments"])), json.dumps(last["configuration"])
        lines.append(f"last launch: {last['kernel']} grid {last['grid']} {configuration} {arguments}")
    if failure.again:
        lines.append(failure.again)
    share = max(80, (most - len(where)) // max(1, len(lines)))
    return ["", where[:WIDTH], *(f"  {line}"[:share] for line in lines)]
