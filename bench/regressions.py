"""Find regressions by comparing all figures that two results have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.figures import Results, Row, anchor_of, is_ceiling, speed_up

# Figures that must not grow: exact counts, and memory.
GROWTH = ("launches", "aten_calls", "saved_bytes", "peak_bytes")

# The text that describes a figure, its old value, and its new value.
Compared = tuple[str, float, float]


def regressions(new: Results, old: Results, over: float) -> tuple[list[str], list[str], int]:
    """Compare ``new`` with ``old``, and return worse figures, missing rows, and the number compared.

    The first list has a line for each figure that is worse by more than ``over`` (0.05 is 5 %). The second
    has the names of rows that are missing from ``new``.

    A time is compared relative to the first provider of its group in the same run, so that a busier machine
    does not count as a regression. There is no such ratio for the first provider itself, or if the first
    providers differ. The time is then compared directly, and only on the same hardware. Ceilings are not
    compared. Counts are compared directly, and so is memory on the same hardware.
    """
    worse, compared = [], 0
    olds, news = _rows_by_name(old), _rows_by_name(new)
    same_hardware = new.machine["hardware"] == old.machine["hardware"]
    for key, (row, rows) in news.items():
        if key not in olds:
            continue
        before, rows_before = olds[key]
        figures = [*_counts(before, row, same_hardware)]
        figures += _times(before, rows_before, row, rows, same_hardware)
        compared += len(figures)
        for text, a, b in figures:
            if b > a * (1 + over):
                worse.append(f"{row.group}, {row.provider}: {text} (+{100 * (b / a - 1):.1f} %)")
    missing = [f"{group}, {provider}" for group, provider in olds.keys() - news.keys()]
    return worse, missing, compared


def _rows_by_name(results: Results) -> dict[tuple[str, str], tuple[Row, list[Row]]]:
    """Return each row and all rows of its group, by the names of the group and the provider."""
    by_name = {}
    for rows in results.groups.values():
        for row in rows:
            by_name[row.group, row.provider] = row, rows
    return by_name


def _counts(before: Row, row: Row, same_hardware: bool) -> Iterator[Compared]:
    for field in GROWTH:
        a, b = before.info.get(field), row.info.get(field)
        if a and b is not None and (field != "peak_bytes" or same_hardware):
            yield f"{field} {a:,} -> {b:,}", a, b


def _times(
    before: Row, rows_before: Sequence[Row], row: Row, rows: Sequence[Row], same_hardware: bool
) -> Iterator[Compared]:
    if row.info.get("counts_only") or is_ceiling(row):
        return
    anchor = anchor_of(rows)
    if row is not anchor and anchor.provider == anchor_of(rows_before).provider:
        a, b = _relative_to_anchor(before, rows_before), _relative_to_anchor(row, rows)
        yield f"time relative to {anchor.provider} {a:.4g} -> {b:.4g}", a, b
    elif same_hardware:
        a, b = before.time.median, row.time.median
        yield f"time in seconds {a:.4g} -> {b:.4g}", a, b


def _relative_to_anchor(row: Row, rows: Sequence[Row]) -> float:
    """Return the time of ``row`` divided by that of the first provider of its group."""
    return 1 / speed_up(row, anchor_of(rows)).median
