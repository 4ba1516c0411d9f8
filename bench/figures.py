"""From what pytest-benchmark keeps of a race to figures: medians, rates, and ratios of one run, each with its
spread.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

# What a bench may count, its unit, and how many make one.
UNITS = {"pictures": ("images/s", 1.0), "bytes": ("GB/s", 1e9), "flops": ("GFLOP/s", 1e9)}
# Providers that are no answer but what answers are compared with.
CEILINGS = ("copy", "matmul", "launch", "import")
# What is counted exactly, its name, and how many make one.
COUNTS = {
    "launches": ("Triton launches", 1.0),
    "aten_calls": ("ATen calls", 1.0),
    "saved_bytes": ("MiB kept for the backward", 2.0**20),
    "step_flops": ("GFLOP of the convolutions", 1e9),
    "least_bytes": ("GB that must move", 1e9),
}


@dataclass(frozen=True)
class Spread:
    """A median with the smallest and the largest of ``n`` values."""

    median: float
    least: float
    most: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values), len(values))

    def scaled(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.least * factor, self.most * factor, self.n)

    def __format__(self, digits: str) -> str:
        """Format as "1.86 (1.80 to 1.93)"; a single value stands alone."""
        if self.n == 1:
            return format(self.median, digits)
        return f"{self.median:{digits}} ({self.least:{digits}} to {self.most:{digits}})"


@dataclass
class Row:
    """One provider in one group: ``seconds`` of each round, in the order of the rounds; ``info`` is what the
    bench said of itself.
    """

    file: str
    group: str
    provider: str
    seconds: list[float]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def each(self) -> Spread:
        """Seconds of one iteration, call or operation."""
        return Spread.of(self.seconds).scaled(1 / self.info.get("operations", 1))

    @property
    def rate(self) -> tuple[Spread, str] | None:
        """What the bench counts, by the second, and its unit; None where it counts nothing."""
        counted = next((name for name in UNITS if name in self.info), None)
        if counted is None:
            return None
        unit, scale = UNITS[counted]
        amount, time = self.info[counted] / scale, Spread.of(self.seconds)
        return Spread(amount / time.median, amount / time.most, amount / time.least, time.n), unit


def row_of(bench: dict[str, Any]) -> Row:
    """Return what is kept of one entry of pytest-benchmark's JSON."""
    info = dict(bench["extra_info"])
    provider = info.pop("provider", bench["name"])
    file = bench["fullname"].partition("::")[0].rpartition("/")[2]
    group = bench["group"]
    if group is None:
        group = ""
    return Row(file, group, provider, list(bench["stats"]["data"]), info)


@dataclass
class Results:
    """A run of the benches: the machine, as ``machine.machine`` tells of it, and the rows."""

    machine: dict[str, Any]
    rows: list[Row]
    tests: dict[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        return found

    @property
    def quick(self) -> bool:
        """Whether the sizes were those for tests, whose figures mean nothing."""
        return "sizes" in self.machine

    @property
    def title(self) -> str:
        """The hardware, versions, commit and date in one line."""
        told = [str(self.machine["hardware"])]
        for key, value in self.machine.items():
            if key not in ("conditions", "device", "hardware"):
                told.append(f"{key} {value}")
        return ", ".join(told)


def read_results(path: Path) -> Results:
    """Return the results in a file that ``pytest bench/ --benchmark-json=FILE`` wrote. Raises ValueError for
    any other.
    """
    try:
        found = json.loads(path.read_text())
        about = found["machine_info"]["fastcyclegan"]
        rows = [row_of(bench) for bench in found["benchmarks"]]
        if not all(row.seconds for row in rows) or not about["hardware"]:
            raise ValueError
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a result of pytest bench/ --benchmark-json=FILE") from None
    return Results(about, rows, found.get("tests", {}))


def anchor_of(rows: Sequence[Row]) -> Row:
    """Return the provider that the others of a group are compared with: the first that is no ceiling."""
    for row in rows:
        if not is_ceiling(row):
            return row
    return rows[0]


def ceiling_of(rows: Sequence[Row]) -> Row | None:
    for row in rows:
        if is_ceiling(row):
            return row
    return None


def is_ceiling(row: Row) -> bool:
    """Whether a row is no answer but what answers are compared with."""
    return row.provider.partition(" ")[0] in CEILINGS


def speed_up(row: Row, anchor: Row) -> Spread:
    """Return how many times faster ``row`` is than ``anchor``, round by round: their n-th rounds were run one
    after the other.
    """
    ours, theirs = row.info.get("operations", 1), anchor.info.get("operations", 1)
    pairs = zip(row.seconds, anchor.seconds, strict=False)
    return Spread.of([(b / theirs) / (a / ours) for a, b in pairs])


def duration(spread: Spread) -> str:
    """Return a time in the unit that suits it."""
    if spread.median < 1e-3:
        return f"{spread.scaled(1e6):,.1f} us"
    if spread.median < 1:
        return f"{spread.scaled(1e3):,.1f} ms"
    return f"{spread:.3g} s"


def lines_of(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines that a terminal shows: each group, its providers, their rates and ratios."""
    groups = Results({}, list(rows)).groups
    for group, members in groups.items():
        yield f"\n{group}"
        anchor = anchor_of(members)
        for row in members:
            if row.info.get("counts_only"):
                yield f"  {row.provider:<24}" + "  ".join(_counts(row))
            else:
                cells = [f"  {row.provider:<24}", *_timed(row, anchor)]
                yield "  ".join(cells) + f"  n={len(row.seconds)}"


def _counts(row: Row) -> Iterator[str]:
    for key, (name, scale) in COUNTS.items():
        if key in row.info:
            yield f"{row.info[key] / scale:,.6g} {name}"


def _timed(row: Row, anchor: Row) -> Iterator[str]:
    """Yield the time of ``row``, its rate, its memory and its ratio to ``anchor``, as far as it has them."""
    yield duration(row.each)
    if row.rate is not None:
        rate, unit = row.rate
        if rate.median < 100:
            yield f"{rate.median:,.3g} {unit}"
        else:
            yield f"{rate.median:,.0f} {unit}"
    if row.info.get("peak_bytes"):
        yield f"{row.info['peak_bytes'] / 2**20:,.0f} MiB"
    if row is not anchor and not is_ceiling(row) and not is_ceiling(anchor):
        yield f"{speed_up(row, anchor):.2f}x of {anchor.provider}"
