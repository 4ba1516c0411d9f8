"""The regression check: what two results share, compared figure by figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.figures import Results, Row, anchor_of, is_ceiling, speed_up

# What must not grow: exact counts, and memory.
GROWTH = ("launches", "aten_calls", "saved_bytes", "peak_bytes")

# What is said of a figure, its old value, and its new one.
Compared = tuple[str, float, float]


def regressions(new: Results, old: Results, over: float) -> tuple[list[str], list[str], int]:
    """Compare two results: what became worse by more than ``over`` (0.05 is 5 %), what is gone, and how many
    figures were compared.

    A time is compared as a ratio to its group's first provider, both of one run, so that a busier machine is
    no regression; where there is none (the first itself, or a ceiling), only on the same hardware. Counts and
    memory are compared as they are.
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
    gone = [f"{group}, {provider}" for group, provider in olds.keys() - news.keys()]
    return worse, gone, compared


def _rows_by_name(results: Results) -> dict[tuple[str, str], tuple[Row, list[Row]]]:
    """Return each row with those of its group, by the names of its group and its provider."""
    found = {}
    for rows in results.groups.values():
        for row in rows:
            found[row.group, row.provider] = row, rows
    return found


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
        a, b = _beside_the_anchor(before, rows_before), _beside_the_anchor(row, rows)
        yield f"time, beside {anchor.provider}, {a:.4g} -> {b:.4g}", a, b
    elif same_hardware:
        a, b = before.each.median, row.each.median
        yield f"time, seconds, {a:.4g} -> {b:.4g}", a, b


def _beside_the_anchor(row: Row, rows: Sequence[Row]) -> float:
    """Return the time of ``row`` over that of its group's first provider."""
    return 1 / speed_up(row, anchor_of(rows)).median
