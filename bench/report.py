"""Turn the results of the benches into tables, a spreadsheet and plots, or compare two results.

The comparison finds regressions. The README's performance section can be updated as well.

    python -m bench.report RESULTS.json ...   # writes report/: report.md, results.csv, *.png and *.svg
    python -m bench.report NEW.json --against OLD.json --fail-over 5%   # exit code 1 if anything became worse
    python -m bench.report bench/results/NAME.json --readme README.md   # rewrites the README's section

RESULTS are files that ``pytest bench/ --benchmark-only --benchmark-json=FILE`` has written. Every figure
comes with its hardware, versions, commit, date, number of rounds and spread. Every speed-up is relative to
the first provider of its group, and computed within one run, round by round.
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

from bench.figures import COUNTS, Results, Row, anchor_of, is_ceiling, read_results, speed_up
from bench.plots import draw
from bench.regressions import regressions
from bench.result_tables import counts_table, markdown, ratios, table

BEGIN, END = "<!-- performance: written by bench/report.py from {} -->", "<!-- end of performance -->"

# The columns of the spreadsheet: the machine, the timings, and the extra information from the benches.
ABOUT = ("hardware", "driver", "torch", "triton", "python", "commit", "date")
TIMES = ("n", "median_s", "min_s", "max_s")
RATES = ("rate", "unit")
SPEED_UPS = ("speed_up", "speed_up_min", "speed_up_max", "anchor")
EXTRA = ("precision", "size", "batch", "identity", "peak_bytes", *COUNTS)


# --- The spreadsheet ----------------------------------------------------------------------------------------


def write_csv(all_results: Sequence[Results], path: Path) -> None:
    """Write one line per provider and group, with the seconds of one call or iteration."""
    columns = (*ABOUT, "file", "group", "provider", *TIMES, *RATES, *SPEED_UPS, *EXTRA)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for results in all_results:
            for rows in results.groups.values():
                anchor = anchor_of(rows)
                for row in rows:
                    writer.writerow(_cells(results, row, anchor))


def _cells(results: Results, row: Row, anchor: Row) -> dict[str, Any]:
    """Return the spreadsheet's cells for ``row``, by column."""
    cells: dict[str, Any] = {"file": row.file, "group": row.group, "provider": row.provider}
    for name in ABOUT:
        cells[name] = results.machine.get(name, "")
    for name in EXTRA:
        cells[name] = row.info.get(name, "")
    if row.info.get("counts_only"):
        return cells
    time, rate = row.time, row.rate
    cells |= zip(TIMES, (time.n, time.median, time.least, time.most), strict=True)
    if rate is not None:
        cells |= zip(RATES, (rate[0].median, rate[1]), strict=True)
    if not is_ceiling(row) and not is_ceiling(anchor):
        ratio = speed_up(row, anchor)
        cells |= zip(SPEED_UPS, (ratio.median, ratio.least, ratio.most, anchor.provider), strict=True)
    return cells


# --- The README ---------------------------------------------------------------------------------------------


def readme_section(results: Results, name: str) -> Iterator[str]:
    """Yield the lines of the README's performance section.

    ``name`` is the name of the file that ``results`` come from.
    """
    from bench.providers import PROVIDERS

    yield BEGIN.format(name)
    yield (
        f"Measured on: {results.title}. In each table, the providers took turns in one run, in random order."
    )
    yield (
        "Speed-ups compare rounds that ran one after the other: the median, with the smallest and largest of"
        " all rounds."
    )
    if results.machine.get("device") != "cuda":
        yield "**This version has not been measured on a GPU yet**: these are CPU figures at reduced sizes."
    for file in ("bench_train_step.py", "bench_generator.py", "bench_loader.py"):
        for group, rows in results.groups.items():
            if rows[0].file == file:
                yield f"\n{group[0].upper()}{group[1:]}:\n"
                yield from table(rows)
                yield from ratios(rows)
    yield ""
    providers = {row.provider for row in results.rows}
    for provider_name, provider in PROVIDERS.items():
        if provider_name in providers:
            yield f"- `{provider_name}`: {provider.title}"
    for group, rows in results.groups.items():
        if rows[0].info.get("counts_only"):
            yield f"\nExact {group} (counting needs no GPU):\n"
            yield from counts_table(rows)
            break
    if results.machine.get("device") != "cuda":
        yield from _floor()
    yield END


def _floor() -> Iterator[str]:
    """Yield the lines about the calculated lower bound on the time of a training step on an H200."""
    from bench.step_work import Chip, step_work, total

    chip = Chip(790e12, 4.3e12, 1.1e-6, "typed in")
    work = step_work(256, 1)
    floor = 1e3 * total(work, chip, 0)
    yield (
        f"\nThe lower bound for a training step at 256x256, batch 1, bf16 on an H200 is {floor:.1f} ms, plus"
        " the launches. It is"
    )
    yield "calculated from the chip's ceilings (790 TFLOP/s, 4.3 TB/s), not measured:"
    yield (
        "`python -m bench.roofline --matrix_tflops 790 --bandwidth_gbs 4300 --launch_us 1.1` shows it by"
        " layer."
    )


def write_readme(section: Sequence[str], readme: Path) -> None:
    """Replace the section between the two markers in ``readme`` with the lines of ``section``.

    Raises ValueError if the file does not contain the markers.
    """
    text = readme.read_text()
    begin = re.escape(BEGIN.split("{}")[0])
    match = re.search(f"{begin}.*?{re.escape(END)}", text, re.DOTALL)
    if not match:
        raise ValueError(
            f"{readme}: found no section that begins with {BEGIN.format('FILE')} and ends with {END}"
        )
    readme.write_text(text[: match.start()] + "\n".join(section) + text[match.end() :])


# --- The command line ---------------------------------------------------------------------------------------


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1000:
        raise argparse.ArgumentTypeError(f"must be a percentage such as 5%, got {text!r}")
    return value / 100


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and the parsed options; the caller reports later errors through the parser."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULTS",
        help="files written by pytest bench/ --benchmark-json=FILE",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for report.md, results.csv and the plots (default: report)",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="rewrite the performance section of this file from the first of RESULTS",
    )
    parser.add_argument(
        "--against", type=Path, metavar="OLD", help="compare the first of RESULTS with these older results"
    )
    parser.add_argument(
        "--fail-over",
        type=_percent,
        default=0.05,
        metavar="PERCENT",
        help="allowed increase of a figure (default: 5%%)",
    )
    return parser, parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line that the module docstring describes.

    Returns 1 if a figure became worse than allowed.
    """
    parser, options = parse(arguments)
    try:
        all_results = [read_results(path) for path in options.results]
        old = _read_older(options, all_results[0])
        if options.readme:
            write_readme(list(readme_section(all_results[0], options.results[0].name)), options.readme)
            print(f"{options.readme}: performance section rewritten from {options.results[0]}")
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    if old is not None:
        return _compared(parser, all_results[0], old, options.fail_over)
    if options.output:
        _write(parser, all_results, options.output)
    elif not options.readme:
        _write(parser, all_results, Path("report"))
    return 0


def _read_older(options: argparse.Namespace, new: Results) -> Results | None:
    """Return the results that ``new`` is compared with, or None if there are none.

    Raises ValueError if results with test sizes would go into a README or be compared with real ones.
    """
    old = None
    if options.against:
        old = read_results(options.against)
    if options.readme and new.quick:
        raise ValueError(
            f"{options.results[0]}: measured with --bench-quick, at test sizes, so not suitable for a README"
        )
    if old is not None and new.quick != old.quick:
        raise ValueError(
            f"{options.against}: only one of the two results was measured with --bench-quick, at test sizes,"
            " so they cannot be compared"
        )
    return old


def _compared(parser: argparse.ArgumentParser, new: Results, old: Results, over: float) -> int:
    worse, missing, compared = regressions(new, old, over)
    if not compared:
        parser.error("nothing to compare: the two results have no figure in common")
    print(f"old: {old.title}\nnew: {new.title}")
    for name in sorted(missing):
        print(f"missing from the new results: {name}")
    for line in worse:
        print(f"worse: {line}")
    print(
        f"{compared} figures compared, {len(worse)} worse by more than {100 * over:g} %, {len(missing)}"
        " missing from the new results"
    )
    return int(bool(worse))


def _write(parser: argparse.ArgumentParser, all_results: Sequence[Results], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n\n".join("\n".join(markdown(results)) for results in all_results)
        (folder / "report.md").write_text(text + "\n")
        write_csv(all_results, folder / "results.csv")
    except OSError as error:
        parser.error(f"{folder}: cannot write there: {error.strerror}")
    print(text)
    written = [folder / "report.md", folder / "results.csv"]
    try:
        if len(all_results) == 1:
            written += draw(all_results[0], folder, "")
        else:
            for number, results in enumerate(all_results, 1):
                written += draw(results, folder, f"{number}_")
    except ImportError as error:
        print(f"no plots: {error.name} is not installed (python -m pip install matplotlib)")
    print(f"\nwritten to {folder}: {', '.join(path.name for path in written)}")


if __name__ == "__main__":
    # A pager may close the pipe before everything is printed.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
