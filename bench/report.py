"""Results of the benches as a table, a spreadsheet and pictures; the README's section; and the check that
nothing became slower.

    python -m bench.report RESULTS.json ...   # report/report.md, results.csv, figures
    *.png and *.svg under report/
    python -m bench.report NEW.json --against OLD.json --fail-over 5%   # exit code 1: something became slower
    python -m bench.report bench/results/NAME.json --readme README.md   # write the README's section anew

RESULTS are what ``pytest bench/ --benchmark-only --benchmark-json=FILE`` writes. Every figure has its
hardware, versions, commit, date, number of rounds and spread, and every ratio is of one run: round by round
beside the first provider of its group.
"""

from __future__ import annotations

import argparse
import csv
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.figures import (
    COUNTS,
    Results,
    Row,
    Spread,
    anchor_of,
    ceiling_of,
    duration,
    is_ceiling,
    read_results,
    speed_up,
)
from bench.plots import draw

# Rounds from which on a 95th percentile is more than the largest.
ENOUGH = 20
# What must not grow: exact counts, and memory.
GROWTH = ("launches", "aten_calls", "saved_bytes", "peak_bytes")
BEGIN, END = "<!-- performance: written by bench/report.py from {} -->", "<!-- end of performance -->"


# --- Tables -------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a group's Markdown table."""
    if rows[0].info.get("counts_only"):
        yield from counts_table(rows)
        return
    # Of a group of ceilings alone there is nothing to compare.
    alone = all(is_ceiling(row) for row in rows)
    anchor, ceiling = anchor_of(rows), None if alone else ceiling_of(rows)
    ceiling = ceiling if ceiling is not None and ceiling.rate is not None else None
    rates = any(row.rate for row in rows)
    memory = any(row.info.get("peak_bytes") for row in rows)
    percentiles = rows[0].file == "bench_generator.py" and len(rows[0].seconds) >= ENOUGH
    precise = any("precision" in row.info or "dtype" in row.info for row in rows)
    head = [
        "provider",
        *(["precision"] * precise),
        f"time ({'median, 95th percentile' if percentiles else 'median, least to most'})",
        "rounds",
    ]
    head += (
        ["rate"] * rates
        + ["of the ceiling"] * (ceiling is not None)
        + ["peak memory"] * memory
        + [f"times {anchor.provider}"] * (not alone)
    )
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        median = Spread(row.each.median, 0, 0, 1)
        time = f"{duration(median)}, {duration(_percentile(row, 95))}" if percentiles else duration(row.each)
        cells = [
            row.provider,
            *([str(row.info.get("precision", row.info.get("dtype", "")))] * precise),
            time,
            str(len(row.seconds)),
        ]
        if rates:
            cells.append("" if row.rate is None else f"{_digits(row.rate[0].median)} {row.rate[1]}")
        if ceiling is not None:
            cells.append(_share(row, ceiling))
        if memory:
            peak = row.info.get("peak_bytes")
            cells.append("" if not peak else f"{peak / 2**20:,.0f} MiB")
        if not alone:
            cells.append("" if is_ceiling(row) else "1" if row is anchor else f"{speed_up(row, anchor):.2f}")
        yield "| " + " | ".join(cells) + " |"


def counts_table(rows: Sequence[Row]) -> Iterator[str]:
    counted = {key: count for key, count in COUNTS.items() if all(key in row.info for row in rows)}
    yield "| provider | " + " | ".join(name for name, _ in counted.values()) + " |"
    yield "|---|" + "---|" * len(counted)
    for row in rows:
        values = (row.info[key] / scale for key, (_, scale) in counted.items())
        yield f"| {row.provider} | " + " | ".join(_digits(value) for value in values) + " |"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _percentile(row: Row, percent: float) -> Spread:
    """Return the smallest time that so many percent of the rounds did not exceed."""
    ordered = sorted(row.seconds)
    value = ordered[min(len(ordered) - 1, -(-len(ordered) * int(percent) // 100) - 1)] / row.info.get(
        "operations", 1
    )
    return Spread(value, value, value, 1)


def _share(row: Row, ceiling: Row) -> str:
    if row.rate is None or ceiling.rate is None or row.rate[1] != ceiling.rate[1]:
        return ""
    return f"{100 * row.rate[0].median / ceiling.rate[0].median:.0f} %"


def markdown(results: Results) -> Iterator[str]:
    """Yield one machine's tables, every group."""
    yield f"# {results.title}"
    for name, tests in results.tests.items():
        yield f"\nTests, {name}: {tests['summary']}"
    if conditions := results.rows[0].info.get("conditions") if results.rows else None:
        yield "\nWhile the first group was measured: " + ", ".join(
            f"{name} {value}" for name, value in conditions.items()
        )
    for group, rows in results.groups.items():
        yield f"\n## {group}\n"
        yield from table(rows)
        yield from ratios(rows)


def ratios(rows: Sequence[Row]) -> Iterator[str]:
    """Yield how many times as fast each of ours is as each of the others, where there are several."""
    ours = [row for row in rows if row.provider.startswith("ours")]
    others = [row for row in rows if row not in ours and not is_ceiling(row)]
    if not ours or len(others) < 2 or rows[0].info.get("counts_only"):
        return
    yield "\n| times as fast as | " + " | ".join(row.provider for row in others) + " |"
    yield "|---|" + "---|" * len(others)
    for row in ours:
        yield f"| {row.provider} | " + " | ".join(f"{speed_up(row, other):.2f}" for other in others) + " |"


def write_csv(all_results: Sequence[Results], path: Path) -> None:
    """Write one line a provider and group, seconds of one call or iteration."""
    about = ("hardware", "driver", "torch", "triton", "python", "commit", "date")
    timed = (
        "n",
        "median_s",
        "min_s",
        "max_s",
        "rate",
        "unit",
        "speed_up",
        "speed_up_min",
        "speed_up_max",
        "anchor",
    )
    told = ("precision", "size", "batch", "identity", "peak_bytes", *COUNTS)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*about, "file", "group", "provider", *timed, *told))
        for results in all_results:
            for rows in results.groups.values():
                for row in rows:
                    first = [results.machine.get(name, "") for name in about] + [
                        row.file,
                        row.group,
                        row.provider,
                    ]
                    writer.writerow(
                        [*first, *_timed(row, anchor_of(rows)), *(row.info.get(name, "") for name in told)]
                    )


def _timed(row: Row, anchor: Row) -> list[Any]:
    if row.info.get("counts_only"):
        return [""] * 10
    each, rate = row.each, row.rate
    ratio = None if is_ceiling(row) or is_ceiling(anchor) else speed_up(row, anchor)
    found: list[Any] = [each.n, each.median, each.least, each.most]
    found += ["", ""] if rate is None else [rate[0].median, rate[1]]
    return found + (
        ["", "", "", ""] if ratio is None else [ratio.median, ratio.least, ratio.most, anchor.provider]
    )


# --- The README ---------------------------------------------------------------------------------------------


def readme_section(results: Results, name: str) -> Iterator[str]:
    """Yield the README's lines on performance, from the results in file ``name``."""
    from bench.providers import PROVIDERS

    yield BEGIN.format(name)
    yield (
        f"Measured on: {results.title}. Each table is one run, its providers timed in turns in random order;"
    )
    yield (
        "ratios are of rounds that followed each other: the median, and the least to the most of all rounds."
    )
    if results.machine.get("device") != "cuda":
        yield "**No GPU has measured this version**: these are a processor's figures at reduced sizes."
    for file in ("bench_train_step.py", "bench_generator.py", "bench_loader.py"):
        for group, rows in results.groups.items():
            if rows[0].file == file:
                yield f"\n{group[0].upper()}{group[1:]}:\n"
                yield from table(rows)
                yield from ratios(rows)
    yield ""
    yield from (
        f"- `{name}`: {provider.title}"
        for name, provider in PROVIDERS.items()
        if any(r.provider == name for r in results.rows)
    )
    counted = [(group, rows) for group, rows in results.groups.items() if rows[0].info.get("counts_only")]
    for group, rows in counted[:1]:
        yield f"\nExact {group} (no GPU is needed to count):\n"
        yield from counts_table(rows)
    if results.machine.get("device") != "cuda":
        yield from _floor()
    yield END


def _floor() -> Iterator[str]:
    """Yield what the step must take on an H200 at least: arithmetic, and said to be it."""
    from bench.roofline import Chip, step_work, total

    chip = Chip(790e12, 4.3e12, 1.1e-6, "typed in")
    work = step_work(256, 1)
    floor = 1e3 * total(work, chip, 0)
    yield (
        f"\nThe floor of a training step at 256x256, batch 1, bf16 on an H200: {floor:.1f} ms and the"
        " launches. It is"
    )
    yield "arithmetic from the chip's ceilings (790 TFLOP/s, 4.3 TB/s), not a measurement of ours:"
    yield (
        "`python -m bench.roofline --matrix_tflops 790 --bandwidth_gbs 4300 --launch_us 1.1` shows it by"
        " layer."
    )


def write_readme(section: Sequence[str], readme: Path) -> None:
    """Put ``section`` between its marks in ``readme``. Raises ValueError where there are none."""
    text = readme.read_text()
    found = re.search(re.escape(BEGIN.split("{}")[0]) + ".*?" + re.escape(END), text, re.DOTALL)
    if not found:
        raise ValueError(
            f"{readme}: has no section that begins with {BEGIN.format('FILE')} and ends with {END}"
        )
    readme.write_text(text[: found.start()] + "\n".join(section) + text[found.end() :])


# --- The regression check -----------------------------------------------------------------------------------


def regressions(new: Results, old: Results, over: float) -> tuple[list[str], list[str], int]:
    """Compare two results: what became worse by more than ``over`` (0.05 is 5 %), what is gone, and how many
    figures were compared.

    A time is compared as a ratio to its group's first provider, both of one run, so that a busier machine is
    no regression; where there is none (the first itself, or a ceiling), only on the same hardware. Counts and
    memory are compared as they are.
    """
    worse, compared = [], 0
    olds = {(row.group, row.provider): (row, rows) for rows in old.groups.values() for row in rows}
    news = {(row.group, row.provider): (row, rows) for rows in new.groups.values() for row in rows}
    same_hardware = new.machine["hardware"] == old.machine["hardware"]
    for key, (row, rows) in news.items():
        if key not in olds:
            continue
        before, rows_before = olds[key]
        name = f"{row.group}, {row.provider}"
        for field in GROWTH:
            a, b = before.info.get(field), row.info.get(field)
            if a and b is not None and (field != "peak_bytes" or same_hardware):
                compared += 1
                if b > a * (1 + over):
                    worse.append(f"{name}: {field} {a:,} -> {b:,} (+{100 * (b / a - 1):.1f} %)")
        if row.info.get("counts_only") or is_ceiling(row):
            continue
        a = _comparable(before, rows_before)
        b = _comparable(row, rows)
        how = "beside " + anchor_of(rows).provider
        if row is anchor_of(rows) or anchor_of(rows).provider != anchor_of(rows_before).provider:
            if not same_hardware:
                continue
            a, b, how = before.each.median, row.each.median, "seconds"
        compared += 1
        if b > a * (1 + over):
            worse.append(f"{name}: time, {how}, {a:.4g} -> {b:.4g} (+{100 * (b / a - 1):.1f} %)")
    return worse, [f"{group}, {provider}" for group, provider in olds.keys() - news.keys()], compared


def _comparable(row: Row, rows: Sequence[Row]) -> float:
    """Return the time of ``row`` over that of its group's first provider."""
    return 1 / speed_up(row, anchor_of(rows)).median


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1000:
        raise argparse.ArgumentTypeError(f"a percentage such as 5%, got {text!r}")
    return value / 100


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module. Returns 1 where something became worse."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULTS",
        help="files of pytest bench/ --benchmark-json=FILE",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where report.md, results.csv and the pictures go (default: report)",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="write its performance section anew, from the first of RESULTS",
    )
    parser.add_argument("--against", type=Path, metavar="OLD", help="compare the first of RESULTS with these")
    parser.add_argument(
        "--fail-over", type=_percent, default=0.05, metavar="PERCENT", help="what may be worse (default: 5%%)"
    )
    options = parser.parse_args(arguments)
    try:
        found = [read_results(path) for path in options.results]
        old = read_results(options.against) if options.against else None
        if options.readme and found[0].quick:
            raise ValueError(f"{options.results[0]}: sizes for tests (--bench-quick): not for a README")
        if old is not None and found[0].quick != old.quick:
            raise ValueError(
                f"{options.against}: one of the two has sizes for tests (--bench-quick): they cannot be"
                " compared"
            )
        if options.readme:
            write_readme(list(readme_section(found[0], options.results[0].name)), options.readme)
            print(f"{options.readme}: written from {options.results[0]}")
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    if old is not None:
        return _compared(parser, found[0], old, options.fail_over)
    if options.output or not options.readme:
        _write(parser, found, options.output or Path("report"))
    return 0


def _compared(parser: argparse.ArgumentParser, new: Results, old: Results, over: float) -> int:
    worse, gone, compared = regressions(new, old, over)
    if not compared:
        parser.error("nothing to compare: the two results share no figure")
    print(f"old: {old.title}\nnew: {new.title}")
    for name in sorted(gone):
        print(f"not measured now: {name}")
    for line in worse:
        print(f"worse: {line}")
    print(
        f"{compared} figures compared, {len(worse)} worse by more than {100 * over:g} %, {len(gone)} not"
        " measured now"
    )
    return 1 if worse else 0


def _write(parser: argparse.ArgumentParser, found: Sequence[Results], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join("\n".join(markdown(results)) for results in found)
        (folder / "report.md").write_text(text + "\n")
        write_csv(found, folder / "results.csv")
    except OSError as error:
        parser.error(f"{folder}: cannot write there: {error.strerror}")
    print(text)
    written = [folder / "report.md", folder / "results.csv"]
    try:
        for n, results in enumerate(found):
            written += draw(results, folder, f"{n + 1}_" if len(found) > 1 else "")
    except ImportError as error:
        print(f"no pictures: {error.name} is not installed (python -m pip install matplotlib)")
    print(f"\nwritten to {folder}: {', '.join(path.name for path in written)}")


if __name__ == "__main__":
    # What is printed may be cut off by a pager.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
