"""Test and measure everything on a GPU machine within half an hour, in three stages.

    python scripts/gpu_suite.py --stage 1

Stage 1 checks correctness, on which everything else depends, stage 2 checks the engine, and stage 3 runs the
benches. Without --stage, all three run. Results are written to --results as they become known, and the output
ends with a summary. A stage needs torch, triton, numpy, Pillow, rich, matplotlib, pytest with
pytest-benchmark, pytest-timeout and pytest-xdist, and this checkout. Neither the project nor tyro nor DALI
has to be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch

from bench.compiled_kernels import compiled_kernels, restore_compiled, save_compiled
from bench.figures import Row, read_results
from bench.gpu_outcome import Context, Outcome
from bench.gpu_stages import SECONDS, STAGES, TITLES
from bench.gpu_summary import MAX_SUMMARY, Printer, summary
from bench.gpu_tasks import Benches, Part
from bench.launches import FAULTS
from bench.machine import ROOT, machine
from bench.rehearsal import MARK, PREFIX, CannotRehearse, rehearse
from bench.result_tables import markdown
from fastcyclegan.kernels import _tune, backend_table
from fastcyclegan.tensor_files import write_atomically

# Seconds reserved for writing files at the end of a stage, mainly the compiled kernels.
ENDING = 12.0
# The time limit of a rehearsed stage in seconds. Without a GPU, sizes are tiny and CPU cores few.
REHEARSAL = 280.0
# A part starts only if at least this many seconds remain.
LEAST = 8.0
LONGEST_LOG, MAX_FAILURES = 12 << 20, 100
# Cache folders that later calls on the same machine reuse, if they can be created. Otherwise the user's own
# caches are used.
CACHES = {"TRITON_CACHE_DIR": "/opt/tc", "XDG_CACHE_HOME": "/opt/xc"}


class Suite:
    """One stage of the suite. It runs the parts one after the other and keeps the result files up to date."""

    def __init__(self, stage: int, context: Context, seconds: float, printer: Printer) -> None:
        self.stage, self.context, self.seconds, self.printer = stage, context, seconds, printer
        self.started = time.monotonic()
        self.outcomes: list[Outcome] = []
        self.planned = 0
        self.about = {**machine(), **packages(), "stage": f"{stage}: {TITLES[stage]}"}
        if context.rehearsed:
            self.about["rehearsal"] = MARK

    @property
    def remaining(self) -> float:
        """The seconds until the stage must end."""
        return self.seconds - (time.monotonic() - self.started)

    def run(self, parts: Sequence[Part]) -> int:
        """Run ``parts``, each within its own limit and the time left in the stage.

        Returns 1 if a part failed or had no time to run, 0 otherwise.
        """
        self.planned = len(parts)
        self.printer.line(
            f"stage {self.stage}, {TITLES[self.stage]}, limit {self.seconds:.0f} s: {self.about['hardware']}"
        )
        for number, part in enumerate(parts, 1):
            outcome = self._run(part)
            self.outcomes.append(outcome)
            self.printer.line(f"[{number}/{len(parts)}] {_line(outcome)}")
            self.write()
        self._try(lambda: save_compiled(self.context.results))
        self.printer.summary(self.summary(self.printer.limit))
        return int(not all(outcome.holds for outcome in self.outcomes))

    def _run(self, part: Part) -> Outcome:
        seconds = min(part.seconds, self.remaining - ENDING)
        if seconds < LEAST:
            return Outcome(part.name, f"not run: only {max(0.0, self.remaining):.0f} s were left")
        try:
            return part.run(self.context, seconds)
        # An error in the results of one part must not stop the others: time on the machine is limited.
        except Exception as error:
            return Outcome(part.name, f"cannot read its result: {type(error).__name__}: {error}")

    def summary(self, limit: int = MAX_SUMMARY) -> list[str]:
        seconds = time.monotonic() - self.started
        return summary(self.about, self.outcomes, self.planned, seconds, self.files(), limit)

    def _try(self, write: Callable[[], Any]) -> None:
        """Call ``write``. If it fails, print the error and continue.

        The time of a stage is worth more than one file.
        """
        try:
            write()
        except Exception as error:
            self.printer.line(f"cannot write a result file: {type(error).__name__}: {error}")

    def files(self) -> list[str]:
        names = []
        for path in self.context.results.rglob("*"):
            if path.is_file():
                names.append(str(path.relative_to(self.context.results)))
        if self.context.rehearsed:
            names = [PREFIX + name for name in names]
        return sorted(names)

    def write(self) -> None:
        """Write everything known so far to the results folder.

        The files contain the outcomes as JSON, the summary, the full output, the rows of the benches, and the
        tuned tiles.
        """
        self._try(self._write_outcomes)
        self._try(self._write_rows)
        self._try(lambda: _copy_tuned(self.context.results))

    def _write_outcomes(self) -> None:
        results, stem = self.context.results, f"stage{self.stage}"
        parts, log = [], []
        for outcome in self.outcomes:
            content = {**asdict(outcome), "output": None, "holds": outcome.holds}
            content["failures"] = content["failures"][:MAX_FAILURES]
            parts.append(content)
            log.append(f"===== {outcome.name}\n{outcome.output}")
        finished = len(parts) == self.planned
        _replace_json(results / f"{stem}.json", {"machine": self.about, "finished": finished, "parts": parts})
        _replace(results / f"{stem}.md", "\n".join(self.summary()) + "\n")
        _replace(results / f"{stem}.log", "\n".join(log)[-LONGEST_LOG:])

    def _write_rows(self) -> None:
        contents = []
        for part in STAGES[self.stage]:
            if isinstance(part, Benches):
                # A process that was killed may have left an incomplete file.
                with contextlib.suppress(OSError, ValueError):
                    contents.append(json.loads(part.rows_of(self.context).read_text()))
        if not contents:
            return
        benchmarks = []
        for content in contents:
            benchmarks += content["benchmarks"]
        file = self.context.results / f"{name_of(self.about)}.json"
        _replace_json(file, {**contents[0], "benchmarks": benchmarks, "tests": self.tests()})
        results = read_results(file)
        _replace(file.with_suffix(".md"), "\n".join(markdown(results)) + "\n")
        if table := backends(results.rows):
            folder = self.context.results / "backends"
            folder.mkdir(exist_ok=True)
            _replace_json(folder / backend_table.table_file(self.about["hardware"]).name, table)

    def tests(self) -> dict[str, Any]:
        """Return the test results of the earlier stages, for the report on the benches.

        They are read from the files of these stages in the results folder.
        """
        tests = {}
        for stage in (1, 2):
            file = self.context.results / f"stage{stage}.json"
            if not file.exists():
                continue
            for part in json.loads(file.read_text())["parts"]:
                ending = part["why"]
                if not ending:
                    ending = "finished"
                tally = ", ".join(f"{count} {kind}" for kind, count in part["counts"].items())
                tests[part["name"]] = {"status": int(not part["holds"]), "summary": f"{ending}; {tally}"}
        return tests


def _line(outcome: Outcome) -> str:
    """Return the line that is printed when a part ends."""
    result = outcome.note
    if not result:
        result = "passed"
        if not outcome.holds:
            result = f"FAILED {outcome.why}".rstrip()
    if outcome.tally:
        result += f", {outcome.tally}"
    return f"{outcome.name}: {result}; {outcome.seconds:.0f} s"


def name_of(about: dict[str, str]) -> str:
    name = f"{about['hardware']} torch {about['torch']} triton {about['triton']}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)


def packages() -> dict[str, str]:
    """Return notes for the summary about the packages on this machine.

    They name the folder of the compiled kernels, and the optional packages that are not installed.
    """
    missing = []
    for name, module in (("DALI", "nvidia.dali"), ("tyro", "tyro")):
        if not _is_installed(module):
            missing.append(name)
    notes = {"compiled kernels": str(compiled_kernels())}
    if missing:
        notes["not installed"] = f"{' and '.join(missing)} (optional; rows that need them are left out)"
    return notes


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def backends(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each backend, for every shape that was measured with both.

    This is the table that is stored in kernels/backends.
    """
    measured: dict[str, dict[str, float]] = {}
    for row in rows:
        if "backend_key" in row.info:
            times = measured.setdefault(row.info["backend_key"], {})
            times[row.info["backend"]] = 1e3 * row.time.median
    table = {}
    for key in sorted(measured):
        if {"triton", "cudnn"} <= measured[key].keys():
            table[key] = measured[key]
    return table


def _copy_tuned(results: Path) -> None:
    """Copy the tile sizes that were tuned on this GPU to ``results``.

    These files can then ship as kernels/tuned/*.json.
    """
    if not torch.cuda.is_available():
        return
    tuned = _tune.cache_file(torch.cuda.get_device_name())
    if tuned.exists():
        shutil.copy(tuned, results / f"tuned-{tuned.name}")


def _replace(file: Path, text: str) -> None:
    """Replace the content of ``file`` atomically.

    After an interruption, the file has either the old or the new content.
    """
    write_atomically(file, lambda partial: partial.write_text(text))


def _replace_json(file: Path, content: Any) -> None:
    _replace(file, json.dumps(content, indent=1) + "\n")


# --- The command line ---------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_suite.py", description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "--stage",
        type=int,
        choices=STAGES,
        help="1: correctness, 2: the engine, 3: the benches (default: all)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "bench" / "results",
        metavar="DIR",
        help="folder for the results (default: bench/results)",
    )
    limits = ", ".join(f"{seconds:.0f}" for seconds in SECONDS.values())
    parser.add_argument(
        "--seconds", type=float, help=f"maximum seconds per stage (default: {limits} for stages 1, 2, 3)"
    )
    parser.add_argument(
        "--compiled",
        type=Path,
        metavar="DIR",
        help="reuse the compiled kernels of another run, whose triton-cache.tgz.* files are in DIR",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run without a GPU, at tiny sizes, in a copy of the tracked files and a bare environment",
    )
    parser.add_argument(
        "--plant-fault",
        choices=FAULTS,
        help="make kernels compute wrong results (kernel) or crash (crash), to check the summary",
    )
    parser.add_argument("--in-rehearsal", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    _check(options, parser)
    if options.rehearse:
        _rehearse(options, parser)
    return options


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if options.seconds is not None and not options.seconds > LEAST + ENDING:
        parser.error(f"--seconds must be more than {LEAST + ENDING:.0f}, got {options.seconds:g}")
    if options.compiled is not None and not any(options.compiled.glob("triton-cache.tgz.*")):
        parser.error(f"--compiled {options.compiled}: the folder contains no triton-cache.tgz.*")
    if not (options.rehearse or options.in_rehearsal or torch.cuda.is_available()):
        parser.error(
            f"torch {torch.__version__} finds no CUDA GPU on this machine; use --rehearse to run without one"
        )
    if options.rehearse and options.compiled is not None:
        parser.error("--compiled needs a GPU: a rehearsal compiles no kernels")


def _rehearse(options: argparse.Namespace, parser: argparse.ArgumentParser) -> NoReturn:
    settings = {"stage": options.stage, "seconds": options.seconds, "plant-fault": options.plant_fault}
    arguments = [f"--{name}={value}" for name, value in settings.items() if value is not None]
    try:
        sys.exit(rehearse(arguments, options.results))
    except CannotRehearse as reason:
        parser.error(str(reason))


def make_context(options: argparse.Namespace, work: Path) -> Context:
    """Return the settings that all parts share, and create the results folder.

    Caches are kept in folders that the next call on the same machine will find.
    """
    for name, folder in CACHES.items():
        if name not in os.environ and os.access(Path(folder).parent, os.W_OK):
            os.environ[name] = folder
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    options.results.mkdir(parents=True, exist_ok=True)
    return Context(work, options.results.resolve(), environment, options.in_rehearsal, options.plant_fault)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of scripts/gpu_suite.py.

    Returns 1 if a part failed or had no time to run, 2 for bad input, and 130 if it was stopped by a signal.
    """
    # When a signal stops this process, it must also end the processes that it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="fastcyclegan-suite-") as work:
        context = make_context(options, Path(work))
        stages = list(STAGES)
        if options.stage is not None:
            stages = [options.stage]
        printer, status = Printer(len(stages)), 0
        if options.compiled is not None:
            printer.line(restore_compiled(options.compiled))
        try:
            for stage in stages:
                suite = Suite(stage, context, _limit(stage, options), printer)
                status = max(status, suite.run(STAGES[stage]))
        except KeyboardInterrupt:
            print(f"\nstopped by a signal; the results so far are in {options.results}", flush=True)
            return 130
    return status


def _limit(stage: int, options: argparse.Namespace) -> float:
    """Return the time limit of ``stage`` in seconds."""
    if options.seconds is not None:
        return float(options.seconds)
    if options.in_rehearsal:
        return REHEARSAL
    return SECONDS[stage]


if __name__ == "__main__":
    sys.exit(main())
