"""Format results as Markdown: a table and the speed-ups for each group, and the whole page of one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from bench.figures import (
    COUNTS,
    Results,
    Row,
    Spread,
    anchor_of,
    duration,
    is_ceiling,
    is_ours,
    share_of_ceiling,
    speed_up,
)

# With at least this many rounds, the 95th percentile differs from the maximum.
ENOUGH = 20
PROVIDER: dict[str, Callable[[Row], str]] = {"provider": lambda row: row.provider}
HEADINGS = {key: name for key, (name, _) in COUNTS.items()}


def markdown(results: Results) -> Iterator[str]:
    """Yield the lines of one machine's page, with a table for every group."""
    yield f"# {results.title}"
    for name, tests in results.tests.items():
        yield f"\nTests, {name}: {tests['summary']}"
    conditions = None
    if results.rows:
        conditions = results.rows[0].info.get("conditions")
    if conditions:
        readings = ", ".join(f"{name} {value}" for name, value in conditions.items())
        yield f"\nDuring the measurement of the first group: {readings}"
    for group, rows in results.groups.items():
        yield f"\n## {group}\n"
        yield from table(rows)
        yield from ratios(rows)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a group's Markdown table."""
    if rows[0].info.get("counts_only"):
        yield from counts_table(rows)
        return
    columns = _columns(rows)
    yield _line(list(columns))
    yield _rule(len(columns))
    for row in rows:
        yield _line([cell(row) for cell in columns.values()])


def _columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """Return the columns for which a group has figures.

    Each heading is mapped to the function that formats a row's cell.
    """
    columns = dict(PROVIDER)
    if any("precision" in row.info or "dtype" in row.info for row in rows):
        columns["precision"] = _precision
    if rows[0].file == "bench_generator.py" and len(rows[0].seconds) >= ENOUGH:
        columns["time (median, 95th percentile)"] = _median_and_percentile
    else:
        columns["time (median, min to max)"] = lambda row: duration(row.time)
    columns["rounds"] = lambda row: str(len(row.seconds))
    if any(row.rate for row in rows):
        columns["rate"] = _rate
    # A group that contains only ceilings has nothing to compare.
    only_ceilings = all(is_ceiling(row) for row in rows)
    if any(share_of_ceiling(row, rows) for row in rows):
        columns["share of the ceiling"] = lambda row: _share(row, rows)
    if any(row.info.get("peak_bytes") for row in rows):
        columns["peak memory"] = _peak
    if not only_ceilings:
        anchor = anchor_of(rows)
        columns[f"speed-up over {anchor.provider}"] = lambda row: _ratio(row, anchor)
    return columns


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _precision(row: Row) -> str:
    return str(row.info.get("precision", row.info.get("dtype", "")))


def _median_and_percentile(row: Row) -> str:
    median = Spread(row.time.median, 0, 0, 1)
    return f"{duration(median)}, {duration(_percentile(row, 95))}"


def _percentile(row: Row, percent: int) -> Spread:
    """Return the smallest round time that ``percent`` percent of the rounds did not exceed."""
    ordered = sorted(row.seconds)
    rank = -(-len(ordered) * percent // 100)
    value = ordered[min(len(ordered), rank) - 1] / row.info.get("operations", 1)
    return Spread(value, value, value, 1)


def _rate(row: Row) -> str:
    if row.rate is None:
        return ""
    rate, unit = row.rate
    return f"{_digits(rate.median)} {unit}"


def _share(row: Row, rows: Sequence[Row]) -> str:
    share = share_of_ceiling(row, rows)
    if share is None:
        return ""
    return f"{100 * share[0]:.0f} %"


def _peak(row: Row) -> str:
    peak = row.info.get("peak_bytes")
    if not peak:
        return ""
    return f"{peak / 2**20:,.0f} MiB"


def _ratio(row: Row, anchor: Row) -> str:
    if is_ceiling(row):
        return ""
    if row is anchor:
        return "1"
    return f"{speed_up(row, anchor):.2f}"


def counts_table(
    rows: Sequence[Row],
    labels: Mapping[str, Callable[[Row], str]] = PROVIDER,
    headings: Mapping[str, str] = HEADINGS,
) -> Iterator[str]:
    """Yield a table of the counts that all ``rows`` have.

    ``labels`` maps the headings of the first columns to the functions that format their cells. ``headings``
    has the counts to show, each with its heading.
    """
    counted = [key for key in headings if all(key in row.info for row in rows)]
    yield _line([*labels, *(headings[key] for key in counted)])
    yield _rule(len(labels) + len(counted))
    for row in rows:
        cells = [label(row) for label in labels.values()]
        cells += [_digits(row.info[key] / COUNTS[key][1]) for key in counted]
        yield _line(cells)


def _digits(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ratios(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a table with the speed-ups of each of fastcyclegan's providers over each of the others.

    Nothing is yielded for a group with fewer than two other providers.
    """
    ours = [row for row in rows if is_ours(row)]
    others = [row for row in rows if row not in ours and not is_ceiling(row)]
    if not ours or len(others) < 2 or rows[0].info.get("counts_only"):
        return
    yield "\n" + _line(["speed-up over", *(row.provider for row in others)])
    yield _rule(1 + len(others))
    for row in ours:
        yield _line([row.provider, *(f"{speed_up(row, other):.2f}" for other in others)])
