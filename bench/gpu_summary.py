"""What the GPU suite prints: a line a part as it ends, and a summary that fits into what comes back from a machine elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from gpu_tasks import Failure, Outcome

# A summary stays below this, and all that is printed below MOST: longer output loses its beginning.
MOST_OF_A_SUMMARY, MOST = 7_800, 19_500
WIDTH = 150


class Printer:
    """Prints lines as they come, until there is just room left for the summaries."""

    def __init__(self, summaries: int = 1) -> None:
        self.room = MOST - MOST_OF_A_SUMMARY * summaries

    def line(self, text: str) -> None:
        text = text[:WIDTH]
        if len(text) + 1 < self.room:
            self.room -= len(text) + 1
            print(text, flush=True)

    def summary(self, lines: Sequence[str]) -> None:
        print("\n".join(lines), flush=True)


def summary(stage: int, about: dict[str, str], outcomes: Sequence[Outcome], seconds: float, files: Sequence[str]) -> list[str]:
    """Return the lines that end a stage: the verdict, the machine, a line a part, failures with what it takes to mend them, the files."""
    bad = [outcome for outcome in outcomes if not outcome.holds]
    verdict = f"{len(bad)} of {len(outcomes)} parts DO NOT HOLD" if bad else f"all {len(outcomes)} parts hold"
    head = [f"# stage {about['stage']}: {verdict}, {seconds:.0f} s", *(f"{key}: {value}" for key, value in about.items() if key != "stage")]
    head.append("")
    head += [
        f"{'FAILS' if not o.holds else 'holds':<6}{o.name:<46}{_tally(o):<36}{o.seconds:5.0f} s  {o.why or o.note}"[:WIDTH]
        for o in outcomes
    ]
    tail = ["", f"files: {', '.join(files)}"[:600]]
    lines = [*head, *_failures(bad, MOST_OF_A_SUMMARY - _size(head) - _size(tail) - 200)]
    # What holds tells its figures, in the room that failures leave.
    shown = [line for outcome in outcomes if outcome.shown and outcome not in bad for line in ("", f"## {outcome.name}", *outcome.shown)]
    return [*lines, *_fitting([line[:WIDTH] for line in shown], MOST_OF_A_SUMMARY - _size(lines) - _size(tail) - 100), *tail]


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
    """Return failures in turns of the parts, the first of each before the second of any, each in its share of ``room``."""
    turns = [outcome.failures[n : n + 1] for n in range(3) for outcome in bad]
    # Two parts may have run one test.
    chosen = list({failure.where: failure for some in turns for failure in some}.values())
    lines: list[str] = []
    for number, failure in enumerate(chosen):
        told = told_of(failure, max(420, room // max(1, min(len(chosen), 8))))
        if _size(lines) + _size(told) > room:
            return [*lines, f"({sum(len(outcome.failures) for outcome in bad) - number} more failures are in the files)"]
        lines += told
    return lines


def told_of(failure: Failure, most: int) -> list[str]:
    """Return a failure in at most ``most`` characters: where, its error line, the last launch before it, what running it alone said."""
    said = failure.text.splitlines()
    errors = [line for line in said if line.startswith("E ")] or [line for line in said if re.match(r"[\w.]*Error\b", line)] or said[-2:]
    lines = ["", f"FAILED {failure.where}", *(f"  {line.strip()}" for line in errors[:2])]
    if failure.launches:
        last = failure.launches[-1]
        arguments = ", ".join(map(str, last["arguments"]))
        lines.append(f"  last launch: {last['kernel']} grid {last['grid']} {json.dumps(last['configuration'])} {arguments}")
    if failure.again:
        lines.append(f"  {failure.again}")
    share = max(80, (most - len(lines[1])) // max(1, len(lines) - 2))
    return [lines[0], lines[1][:WIDTH], *(line[:share] for line in lines[2:])]
