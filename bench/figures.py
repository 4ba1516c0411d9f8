"""Turn the stored results of pytest-benchmark into figures, each with its spread.

The figures are medians, rates, and speed-ups within one run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

# The quantities that a bench can count per round, each with the unit of its rate and the size of that unit.
UNITS = {
    "pictures": ("images/s", 1.0),
    "pixels": ("megapixels/s", 1e6),
    "bytes": ("GB/s", 1e9),
    "flops": ("GFLOP/s", 1e9),
}
# Providers that are only reference points for the others, such as a plain copy.
CEILINGS = ("copy", "matmul", "launch", "import")
# Exact counts, each with its label and the size of the unit.
COUNTS = {
    "launches": ("Triton launches", 1.0),
    "aten_calls": ("ATen calls", 1.0),
    "saved_bytes": ("MiB saved for backward", 2.0**20),
    "step_flops": ("GFLOP of convolutions", 1e9),
    "least_bytes": ("GB of minimum traffic", 1e9),
}


@dataclass(frozen=True)
class Spread:
    """The median, the smallest and the largest of ``n`` values."""

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
        """Format as "1.86 (1.80 to 1.93)", or only the value if there is just one."""
        if self.n == 1:
            return format(self.median, digits)
        return f"{self.median:{digits}} ({self.least:{digits}} to {self.most:{digits}})"


@dataclass
class Row:
    """The results of one provider in one group.

    ``seconds`` contains the time of each round, in the order of the rounds; ``info`` is the extra information
    that the bench has recorded.
    """

    file: str
    group: str
    provider: str
    seconds: list[float]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def time(self) -> Spread:
        """The seconds that one iteration, call or operation takes."""
        return Spread.of(self.seconds).scaled(1 / self.info.get("operations", 1))

    @property
    def rate(self) -> tuple[Spread, str] | None:
        """The rate and its unit, or None if the bench does not count any quantity."""
        counted = next((name for name in UNITS if name in self.info), None)
        if counted is None:
            return None
        unit, scale = UNITS[counted]
        amount, time = self.info[counted] / scale, Spread.of(self.seconds)
        return Spread(amount / time.median, amount / time.most, amount / time.least, time.n), unit


def row_of(bench: dict[str, Any]) -> Row:
    """Return the row for one entry of pytest-benchmark's JSON."""
    info = dict(bench["extra_info"])
    provider = info.pop("provider", bench["name"])
    file = bench["fullname"].partition("::")[0].rpartition("/")[2]
    group = bench["group"]
    if group is None:
        group = ""
    return Row(file, group, provider, list(bench["stats"]["data"]), info)


@dataclass
class Results:
    """The results of one run of the benches.

    ``machine`` is the description from ``machine.machine``, and ``tests`` are the results of the GPU suite's
    tests by name.
    """

    machine: dict[str, Any]
    rows: list[Row]
    tests: dict[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> dict[str, list[Row]]:
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups

    @property
    def quick(self) -> bool:
        """Whether the benches ran at test sizes, for which the figures are meaningless."""
        return "sizes" in self.machine

    @property
    def title(self) -> str:
        """The hardware, versions, commit and date in one line."""
        parts = [str(self.machine["hardware"])]
        for key, value in self.machine.items():
            if key not in ("conditions", "device", "hardware"):
                parts.append(f"{key} {value}")
        return ", ".join(parts)


def read_results(path: Path) -> Results:
    """Read the results from a file written by ``pytest bench/ --benchmark-json=FILE``.

    Raises ValueError if the file cannot be read or contains anything else.
    """
    try:
        content = json.loads(path.read_text())
        about = content["machine_info"]["fastcyclegan"]
        rows = [row_of(bench) for bench in content["benchmarks"]]
        if not all(row.seconds for row in rows) or not about["hardware"]:
            raise ValueError
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a results file of pytest bench/ --benchmark-json=FILE") from None
    return Results(about, rows, content.get("tests", {}))


def anchor_of(rows: Sequence[Row]) -> Row:
    """Return the row that the others of its group are compared with.

    It is the first that is not a ceiling, or the first row if all are ceilings.
    """
    for row in rows:
        if not is_ceiling(row):
            return row
    return rows[0]


def share_of_ceiling(row: Row, rows: Sequence[Row]) -> tuple[float, str] | None:
    """Return the rate of ``row`` divided by that of a ceiling of its group, and the ceiling's name, or None.

    A group can have one ceiling for each precision, such as "matmul fp32"; a row is compared with that of its
    own. Both rates are medians.
    """
    if is_ceiling(row):
        return None
    for ceiling in filter(is_ceiling, rows):
        precision = ceiling.provider.partition(" ")[2]
        if precision and precision != row.info.get("precision"):
            continue
        for counted in ("bytes", "flops"):
            if counted in row.info and counted in ceiling.info:
                amount = row.info[counted] / ceiling.info[counted]
                return amount * median(ceiling.seconds) / median(row.seconds), ceiling.provider
    return None


def is_ours(row: Row) -> bool:
    """Return whether a row is that of fastcyclegan with its kernels."""
    return row.provider.startswith("ours") and row.provider != "ours_without_kernels"


def is_ceiling(row: Row) -> bool:
    """Return whether a row is only a reference point for the others, such as a plain copy."""
    return row.provider.partition(" ")[0] in CEILINGS


def speed_up(row: Row, anchor: Row) -> Spread:
    """Return the speed-up of ``row`` over ``anchor``, computed round by round.

    Rounds with the same number ran one after the other.
    """
    operations, anchor_operations = row.info.get("operations", 1), anchor.info.get("operations", 1)
    pairs = zip(row.seconds, anchor.seconds, strict=False)
    return Spread.of([(b / anchor_operations) / (a / operations) for a, b in pairs])


def duration(spread: Spread) -> str:
    """Format a time in a suitable unit: us, ms or s."""
    if spread.median < 1e-3:
        return f"{spread.scaled(1e6):,.1f} us"
    if spread.median < 1:
        return f"{spread.scaled(1e3):,.1f} ms"
    return f"{spread:.3g} s"


def lines_of(rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines for the terminal: each group with its providers, their times, rates and speed-ups."""
    groups = Results({}, list(rows)).groups
    for group, members in groups.items():
        yield f"\n{group}"
        anchor = anchor_of(members)
        for row in members:
            if row.info.get("counts_only"):
                yield f"  {row.provider:<26}" + "  ".join(_counts(row))
            else:
                cells = [f"  {row.provider:<26}", *_timed(row, anchor, members)]
                yield "  ".join(cells) + f"  n={len(row.seconds)}"


def _counts(row: Row) -> Iterator[str]:
    for key, (name, scale) in COUNTS.items():
        if key in row.info:
            yield f"{row.info[key] / scale:,.6g} {name}"


def _timed(row: Row, anchor: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the time of ``row`` and, if available, its rate, its memory and its speed-up over ``anchor``.

    If the group has a ceiling, the rate is also compared with it.
    """
    yield duration(row.time)
    if row.rate is not None:
        rate, unit = row.rate
        if rate.median < 100:
            yield f"{rate.median:,.3g} {unit}"
        else:
            yield f"{rate.median:,.0f} {unit}"
    share = share_of_ceiling(row, rows)
    if share is not None:
        yield f"{100 * share[0]:.0f} % of {share[1]}"
    if row.info.get("peak_bytes"):
        yield f"{row.info['peak_bytes'] / 2**20:,.0f} MiB"
    if row is not anchor and not is_ceiling(row) and not is_ceiling(anchor):
        yield f"{speed_up(row, anchor):.2f}x as fast as {anchor.provider}"
