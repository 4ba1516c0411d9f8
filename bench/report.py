"""Turn the results of the benches into tables, a spreadsheet and plots, or compare two results.

The comparison finds regressions. The generated sections of the project's pages can be updated as well.

    python -m bench.report RESULTS.json ...   # writes report/: report.md, results.csv, *.png and *.svg
    python -m bench.report NEW.json --against OLD.json --fail-over 5%   # exit code 1 if anything became worse
    python -m bench.report bench/results/NAME.json ... --readme README.md ...   # rewrites their sections

RESULTS are files that ``pytest bench/ --benchmark-only --benchmark-json=FILE`` has written. Every figure
comes with its hardware, versions, commit, date, number of rounds and spread. Every speed-up is relative to
the first provider of its group, and computed within one run, round by round. ``page_sections.py`` lists the
sections that a page can contain.
"""

from __future__ import annotations

import argparse
import csv
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import COUNTS, Results, Row, anchor_of, is_ceiling, read_results, speed_up
from bench.page_sections import SECTIONS, rewritten
from bench.plots import draw
from bench.regressions import regressions
from bench.result_tables import markdown

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


# --- The pages ----------------------------------------------------------------------------------------------


def write_pages(sources: Mapping[str, Results], pages: Sequence[Path]) -> None:
    """Rewrite the generated sections of ``pages`` from ``sources``, which are results by file name.

    Raises ValueError if a page cannot be rewritten, or if results have test sizes. No page is changed then.
    """
    for name, results in sources.items():
        if results.quick:
            raise ValueError(
                f"{name}: measured with --bench-quick, at test sizes, so not suitable for a page"
            )
    texts = {}
    for page in pages:
        try:
            texts[page] = rewritten(page.read_text(), sources)
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from None
    for page, text in texts.items():
        page.write_text(text)


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
        nargs="+",
        type=Path,
        metavar="PAGE",
        help=f"rewrite the sections {', '.join(SECTIONS)} in these pages, each from the first of"
        " RESULTS that has its figures",
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
            names = [path.name for path in options.results]
            write_pages(dict(zip(names, all_results, strict=True)), options.readme)
            print(f"{', '.join(map(str, options.readme))}: sections rewritten from {', '.join(names)}")
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

    Raises ValueError if results with test sizes would be compared with real ones.
    """
    old = None
    if options.against:
        old = read_results(options.against)
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
