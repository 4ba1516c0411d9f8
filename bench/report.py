"""Results of the benches as a table, a spreadsheet and images; the README's section; and the check that
nothing became slower.

    python -m bench.report RESULTS.json ...   # report/: report.md, results.csv, *.png and *.svg
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

from bench.figures import COUNTS, Results, Row, anchor_of, is_ceiling, read_results, speed_up
from bench.plots import draw
from bench.regressions import regressions
from bench.result_tables import counts_table, markdown, ratios, table

BEGIN, END = "<!-- performance: written by bench/report.py from {} -->", "<!-- end of performance -->"

# The columns of the spreadsheet: what the machine says of itself, what was timed, and what a bench tells.
ABOUT = ("hardware", "driver", "torch", "triton", "python", "commit", "date")
TIMES = ("n", "median_s", "min_s", "max_s")
RATES = ("rate", "unit")
SPEED_UPS = ("speed_up", "speed_up_min", "speed_up_max", "anchor")
TOLD = ("precision", "size", "batch", "identity", "peak_bytes", *COUNTS)


# --- The spreadsheet ----------------------------------------------------------------------------------------


def write_csv(all_results: Sequence[Results], path: Path) -> None:
    """Write one line a provider and group, seconds of one call or iteration."""
    columns = (*ABOUT, "file", "group", "provider", *TIMES, *RATES, *SPEED_UPS, *TOLD)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for results in all_results:
            for rows in results.groups.values():
                anchor = anchor_of(rows)
                for row in rows:
                    writer.writerow(_cells(results, row, anchor))


def _cells(results: Results, row: Row, anchor: Row) -> dict[str, Any]:
    """Return what the spreadsheet has of ``row``, by column."""
    cells: dict[str, Any] = {"file": row.file, "group": row.group, "provider": row.provider}
    for name in ABOUT:
        cells[name] = results.machine.get(name, "")
    for name in TOLD:
        cells[name] = row.info.get(name, "")
    if row.info.get("counts_only"):
        return cells
    each, rate = row.each, row.rate
    cells |= zip(TIMES, (each.n, each.median, each.least, each.most), strict=True)
    if rate is not None:
        cells |= zip(RATES, (rate[0].median, rate[1]), strict=True)
    if not is_ceiling(row) and not is_ceiling(anchor):
        ratio = speed_up(row, anchor)
        cells |= zip(SPEED_UPS, (ratio.median, ratio.least, ratio.most, anchor.provider), strict=True)
    return cells


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
    providers = {row.provider for row in results.rows}
    for provider_name, provider in PROVIDERS.items():
        if provider_name in providers:
            yield f"- `{provider_name}`: {provider.title}"
    for group, rows in results.groups.items():
        if rows[0].info.get("counts_only"):
            yield f"\nExact {group} (no GPU is needed to count):\n"
            yield from counts_table(rows)
            break
    if results.machine.get("device") != "cuda":
        yield from _floor()
    yield END


def _floor() -> Iterator[str]:
    """Yield what the step must take on an H200 at least: arithmetic, and said to be it."""
    from bench.step_work import Chip, step_work, total

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
    begin = re.escape(BEGIN.split("{}")[0])
    found = re.search(f"{begin}.*?{re.escape(END)}", text, re.DOTALL)
    if not found:
        raise ValueError(
            f"{readme}: has no section that begins with {BEGIN.format('FILE')} and ends with {END}"
        )
    readme.write_text(text[: found.start()] + "\n".join(section) + text[found.end() :])


# --- The command line ---------------------------------------------------------------------------------------


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1000:
        raise argparse.ArgumentTypeError(f"a percentage such as 5%, got {text!r}")
    return value / 100


def parse(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return what was asked for, and the parser, which ends the process for what turns out to be wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
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
        help="where report.md, results.csv and the images go (default: report)",
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
    return parser, parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module. Returns 1 where something became worse."""
    parser, options = parse(arguments)
    try:
        found = [read_results(path) for path in options.results]
        old = _read_older(options, found[0])
        if options.readme:
            write_readme(list(readme_section(found[0], options.results[0].name)), options.readme)
            print(f"{options.readme}: written from {options.results[0]}")
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    if old is not None:
        return _compared(parser, found[0], old, options.fail_over)
    if options.output:
        _write(parser, found, options.output)
    elif not options.readme:
        _write(parser, found, Path("report"))
    return 0


def _read_older(options: argparse.Namespace, new: Results) -> Results | None:
    """Return the results that ``new`` is compared with, if any. Raises ValueError where sizes for tests would
    get into a README or a comparison.
    """
    old = None
    if options.against:
        old = read_results(options.against)
    if options.readme and new.quick:
        raise ValueError(f"{options.results[0]}: sizes for tests (--bench-quick): not for a README")
    if old is not None and new.quick != old.quick:
        raise ValueError(
            f"{options.against}: one of the two has sizes for tests (--bench-quick): they cannot be compared"
        )
    return old


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
    return int(bool(worse))


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
        if len(found) == 1:
            written += draw(found[0], folder, "")
        else:
            for number, results in enumerate(found, 1):
                written += draw(results, folder, f"{number}_")
    except ImportError as error:
        print(f"no images: {error.name} is not installed (python -m pip install matplotlib)")
    print(f"\nwritten to {folder}: {', '.join(path.name for path in written)}")


if __name__ == "__main__":
    # What is printed may be cut off by a pager.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
