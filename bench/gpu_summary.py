"""Print the progress of the GPU suite, and a summary of each stage.

Progress is one line per finished part. A summary is short enough that a remote machine returns it without
truncation.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Sequence

from bench.gpu_outcome import Failure, Outcome

# Limits in characters: for a summary, for all output, and for the progress lines. Longer output would lose
# its beginning.
MAX_SUMMARY, MAX_OUTPUT, PROGRESS = 7_800, 19_500, 2_500
WIDTH = 150


class Printer:
    """Prints lines immediately, as long as enough room remains for the summaries."""

    def __init__(self, summaries: int = 1) -> None:
        self.limit = min(MAX_SUMMARY, (MAX_OUTPUT - PROGRESS) // summaries)
        self.room = MAX_OUTPUT - self.limit * summaries

    def line(self, text: str) -> None:
        text = text[:WIDTH]
        if len(text) + 1 < self.room:
            self.room -= len(text) + 1
            self.summary([text])

    def summary(self, lines: Sequence[str]) -> None:
        # The reader of the output may be gone; the files contain everything.
        with contextlib.suppress(OSError):
            print("\n".join(lines), flush=True)


def summary(
    about: dict[str, str],
    outcomes: Sequence[Outcome],
    planned: int,
    seconds: float,
    files: Sequence[str],
    limit: int = MAX_SUMMARY,
) -> list[str]:
    """Return the lines of the summary of a stage.

    The summary consists of the overall result, the machine, one line per part, the failures with the details
    needed to fix them, and the result files. ``planned`` is the number of parts in the stage; with fewer
    outcomes the stage counts as unfinished. The summary has at most ``limit`` characters.
    """
    bad = [outcome for outcome in outcomes if not outcome.holds]
    lines = [f"# stage {about['stage']}: {_result(len(bad), len(outcomes), planned)}, {seconds:.0f} s"]
    for key, value in about.items():
        if key != "stage":
            lines.append(f"{key}: {value}")
    lines.append("")
    for outcome in outcomes:
        lines.append(_line(outcome))
    tail = ["", f"files: {', '.join(files)}"[:600]]
    lines += _failures(bad, limit - _size(lines) - _size(tail) - 200)
    # Figures are shown if the failures leave room for them.
    shown = []
    for outcome in outcomes:
        if outcome.shown:
            shown += ["", f"## {outcome.name}", *outcome.shown]
    lines += _fitting([line[:WIDTH] for line in shown], limit - _size(lines) - _size(tail) - 100)
    return lines + tail


def _result(bad: int, finished: int, planned: int) -> str:
    result = f"all {finished} parts passed"
    if bad:
        result = f"{bad} of {finished} parts FAILED"
    if finished < planned:
        result = f"UNFINISHED, {finished} of {planned} parts ran; {result}"
    return result


def _line(outcome: Outcome) -> str:
    status = "FAIL"
    if outcome.holds:
        status = "pass"
    remark = outcome.why
    if not remark:
        remark = outcome.note
    return f"{status:<6}{outcome.name:<46}{outcome.tally:<36}{outcome.seconds:5.0f} s  {remark}"[:WIDTH]


def _size(lines: Sequence[str]) -> int:
    return sum(len(line) + 1 for line in lines)


def _fitting(lines: Sequence[str], room: int) -> list[str]:
    fitting: list[str] = []
    for line in lines:
        if _size(fitting) + len(line) + 60 > room:
            return [*fitting, f"({len(lines) - len(fitting)} more lines are in the files)"]
        fitting.append(line)
    return fitting


def _failures(bad: Sequence[Outcome], room: int) -> list[str]:
    """Return the lines that report the failures of the parts ``bad``, in at most ``room`` characters.

    Parts take turns. Failures with an error that has not been shown yet come before repetitions.
    """
    different: dict[str, Failure] = {}
    for turn in itertools.zip_longest(*(outcome.failures for outcome in bad)):
        for failure in turn:
            if failure is not None:
                # Two parts may have run the same test.
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
        described = describe(failure, max(420, room // min(len(ordered), 8)))
        if _size(lines) + _size(described) > room:
            return [*lines, "", f"({len(ordered) - number} more failures are in the files)"]
        lines += described
    return lines


def _kind(failure: Failure) -> str:
    """Return the error of ``failure`` without its numbers: a key for failures with the same cause."""
    return re.sub(r"[\d.e+-]+", "", "".join(_errors(failure)))[:100]


def _errors(failure: Failure) -> list[str]:
    """Return the first error line of ``failure``, and also the last one if there are several.

    The last one is included because compilers report the cause at the end.
    """
    lines = failure.text.splitlines()
    errors = [line for line in lines if line.startswith("E ")]
    if not errors:
        errors = [line for line in lines if re.match(r"[\w.]*Error\b", line)]
    if not errors:
        errors = lines[-2:]
    return errors[:1] + errors[1:][-1:]


def describe(failure: Failure, limit: int) -> list[str]:
    """Return the lines that report one failure, in about ``limit`` characters.

    The lines give the test or case, its error, the last launch before it, and the result of running it alone.
    """
    title = f"FAILED {failure.where}"
    lines = [line.strip() for line in _errors(failure)]
    if failure.launches:
        last = failure.launches[-1]
        arguments, configuration = ", ".join(map(str, last["arguments"])), json.dumps(last["configuration"])
        lines.append(f"last launch: {last['kernel']} grid {last['grid']} {configuration} {arguments}")
    if failure.again:
        lines.append(failure.again)
    share = max(80, (limit - len(title)) // max(1, len(lines)))
    return ["", title[:WIDTH], *(f"  {line}"[:share] for line in lines)]
