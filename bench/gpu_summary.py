"""What the GPU suite prints: a line a part as it ends, and a summary that fits into what comes back from a
machine elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence

from bench.gpu_tasks import Failure, Outcome

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
    verdict = f"{len(bad)} of {len(outcomes)} parts DO NOT HOLD" if bad else f"all {len(outcomes)} parts hold"
    if len(outcomes) < planned:
        verdict = f"UNFINISHED, {len(outcomes)} of {planned} parts are known; of these {verdict}"
    head = [
        f"# stage {about['stage']}: {verdict}, {seconds:.0f} s",
        *(f"{key}: {value}" for key, value in about.items() if key != "stage"),
    ]
    head.append("")
    for outcome in outcomes:
        holds = "holds" if outcome.holds else "FAILS"
        line = f"{holds:<6}{outcome.name:<46}{_tally(outcome):<36}{outcome.seconds:5.0f} s  "
        head.append((line + (outcome.why or outcome.note))[:WIDTH])
    tail = ["", f"files: {', '.join(files)}"[:600]]
    lines = [*head, *_failures(bad, most - _size(head) - _size(tail) - 200)]
    # Figures come in the room that failures leave.
    shown = [
        line for outcome in outcomes if outcome.shown for line in ("", f"## {outcome.name}", *outcome.shown)
    ]
    return [
        *lines,
        *_fitting([line[:WIDTH] for line in shown], most - _size(lines) - _size(tail) - 100),
        *tail,
    ]


def _tally(outcome: Outcome) -> str:
    return ", ".join(f"{count} {word}" for word, count in outcome.counts.items() if count)


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
    longest = max((len(outcome.failures) for outcome in bad), default=0)
    turns = [outcome.failures[n] for n in range(longest) for outcome in bad if n < len(outcome.failures)]
    # Two parts may have run one test.
    different = list({failure.where: failure for failure in turns}.values())
    fresh = {_kind(failure): failure for failure in reversed(different)}
    ordered = sorted(different, key=lambda failure: fresh[_kind(failure)] is not failure)
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
    said = failure.text.splitlines()
    errors = (
        [line for line in said if line.startswith("E ")]
        or [line for line in said if re.match(r"[\w.]*Error\b", line)]
        or said[-2:]
    )
    return errors[:1] + errors[1:][-1:]


def told_of(failure: Failure, most: int) -> list[str]:
    """Return a failure in at most ``most`` characters: where, its error line, the last launch before it, what
    running it alone said.
    """
    lines = ["", f"FAILED {failure.where}", *(f"  {line.strip()}" for line in _errors(failure))]
    if failure.launches:
        last = failure.launches[-1]
        arguments = ", ".join(map(str, last["arguments"]))
        lines.append(
            f"  last launch: {last['kernel']} grid {last['grid']} {json.dumps(last['configuration'])}"
            f" {arguments}"
        )
    if failure.again:
        lines.append(f"  {failure.again}")
    share = max(80, (most - len(lines[1])) // max(1, len(lines) - 2))
    return [lines[0], lines[1][:WIDTH], *(line[:share] for line in lines[2:])]
