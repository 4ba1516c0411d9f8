"""The half hour on a GPU machine in three commands: python scripts/gpu_suite.py --stage 1, --stage 2, --stage
3

Stage 1 asks what must hold before anything else, 2 the engine, 3 the benches; without --stage all three run.
What is known is written to --results as it comes, and a summary ends the output. A stage needs torch, triton,
numpy, Pillow, rich, matplotlib, pytest with pytest-benchmark, pytest-timeout and pytest-xdist, and this
checkout: neither the project nor tyro nor DALI have to be installed.
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

from bench.compiled_kernels import compiled_kernels, save_compiled, told_of_compiled
from bench.figures import Row, read_results
from bench.gpu_outcome import Outcome, Surroundings
from bench.gpu_stages import SECONDS, STAGES, TITLES
from bench.gpu_summary import MOST_OF_A_SUMMARY, Printer, summary
from bench.gpu_tasks import Benches, Part
from bench.launches import FAULTS
from bench.machine import ROOT, machine
from bench.rehearsal import MARK, PREFIX, CannotRehearse, rehearse
from bench.result_tables import markdown
from fastcyclegan.kernels import _tune, backend_table
from fastcyclegan.tensor_files import write_atomically

# For what is written at the end: the compiled kernels above all.
ENDING = 12.0
# Without a GPU, where sizes are tiny and processors few.
REHEARSAL = 280.0
# A part that has less does not begin.
LEAST = 8.0
LONGEST_LOG, MOST_FAILURES = 12 << 20, 100
# Kept from call to call where the machine is; elsewhere a user's own caches serve.
CACHES = {"TRITON_CACHE_DIR": "/opt/tc", "XDG_CACHE_HOME": "/opt/xc"}


class Suite:
    """One stage: its parts one after the other, and what is known of them in files at any time."""

    def __init__(self, stage: int, around: Surroundings, seconds: float, printer: Printer) -> None:
        self.stage, self.around, self.seconds, self.printer = stage, around, seconds, printer
        self.began = time.monotonic()
        self.outcomes: list[Outcome] = []
        self.planned = 0
        self.about = {**machine(), **packages(), "stage": f"{stage}: {TITLES[stage]}"}
        if around.rehearsed:
            self.about["rehearsal"] = MARK

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def run(self, parts: Sequence[Part]) -> int:
        """Run ``parts``, each in its own time and what is left of the stage's. Returns 1 where one did not
        hold, or had no time.
        """
        self.planned = len(parts)
        self.printer.line(
            f"stage {self.stage}, {TITLES[self.stage]}, {self.seconds:.0f} s: {self.about['hardware']}"
        )
        for number, part in enumerate(parts, 1):
            outcome = self._run(part)
            self.outcomes.append(outcome)
            self.printer.line(f"[{number}/{len(parts)}] {_line(outcome)}")
            self.write()
        self._try(lambda: save_compiled(self.around.results))
        self.printer.summary(self.summary(self.printer.most))
        return int(not all(outcome.holds for outcome in self.outcomes))

    def _run(self, part: Part) -> Outcome:
        seconds = min(part.seconds, self.left - ENDING)
        if seconds < LEAST:
            return Outcome(part.name, f"not run: {max(0.0, self.left):.0f} s were left")
        try:
            return part.run(self.around, seconds)
        # Whatever is wrong with one part's results, the machine's time belongs to the others.
        except Exception as error:
            return Outcome(part.name, f"its result cannot be read: {type(error).__name__}: {error}")

    def summary(self, most: int = MOST_OF_A_SUMMARY) -> list[str]:
        seconds = time.monotonic() - self.began
        return summary(self.about, self.outcomes, self.planned, seconds, self.files(), most)

    def _try(self, write: Callable[[], Any]) -> None:
        """Write something. Where that fails it is printed, and the stage goes on: its time is worth more than
        one file.
        """
        try:
            write()
        except Exception as error:
            self.printer.line(f"not written: {type(error).__name__}: {error}")

    def files(self) -> list[str]:
        names = []
        for path in self.around.results.rglob("*"):
            if path.is_file():
                names.append(str(path.relative_to(self.around.results)))
        if self.around.rehearsed:
            names = [PREFIX + name for name in names]
        return sorted(names)

    def write(self) -> None:
        """Write all that is known into the results: outcomes as JSON, the summary, the whole output, rows of
        benches, what was tuned.
        """
        self._try(self._write_outcomes)
        self._try(self._write_rows)
        self._try(lambda: _keep_tuned(self.around.results))

    def _write_outcomes(self) -> None:
        results, stem = self.around.results, f"stage{self.stage}"
        parts, log = [], []
        for outcome in self.outcomes:
            kept = {**asdict(outcome), "output": None, "holds": outcome.holds}
            kept["failures"] = kept["failures"][:MOST_FAILURES]
            parts.append(kept)
            log.append(f"===== {outcome.name}\n{outcome.output}")
        finished = len(parts) == self.planned
        _replace_json(results / f"{stem}.json", {"machine": self.about, "finished": finished, "parts": parts})
        _replace(results / f"{stem}.md", "\n".join(self.summary()) + "\n")
        _replace(results / f"{stem}.log", "\n".join(log)[-LONGEST_LOG:])

    def _write_rows(self) -> None:
        found = []
        for part in STAGES[self.stage]:
            if isinstance(part, Benches):
                # A process that was killed may have left half a file.
                with contextlib.suppress(OSError, ValueError):
                    found.append(json.loads(part.rows_of(self.around).read_text()))
        if not found:
            return
        benchmarks = []
        for each in found:
            benchmarks += each["benchmarks"]
        file = self.around.results / f"{name_of(self.about)}.json"
        _replace_json(file, {**found[0], "benchmarks": benchmarks, "tests": self.tests()})
        results = read_results(file)
        _replace(file.with_suffix(".md"), "\n".join(markdown(results)) + "\n")
        if table := backends(results.rows):
            folder = self.around.results / "backends"
            folder.mkdir(exist_ok=True)
            _replace_json(folder / backend_table.table_file(self.about["hardware"]).name, table)

    def tests(self) -> dict[str, Any]:
        """Return what the stages that left their files here said of their tests, for the report of the
        benches.
        """
        found = {}
        for stage in (1, 2):
            file = self.around.results / f"stage{stage}.json"
            if not file.exists():
                continue
            for part in json.loads(file.read_text())["parts"]:
                how = part["why"]
                if not how:
                    how = "done"
                tally = ", ".join(f"{count} {word}" for word, count in part["counts"].items())
                found[part["name"]] = {"status": int(not part["holds"]), "summary": f"{how}; {tally}"}
        return found


def _line(outcome: Outcome) -> str:
    """Return what is printed of a part as it ends."""
    logged = outcome.note
    if not logged:
        logged = "holds"
        if not outcome.holds:
            logged = f"DOES NOT HOLD {outcome.why}".rstrip()
    if outcome.tally:
        logged += f", {outcome.tally}"
    return f"{outcome.name}: {logged}; {outcome.seconds:.0f} s"


def name_of(about: dict[str, str]) -> str:
    name = f"{about['hardware']} torch {about['torch']} triton {about['triton']}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", name)


def packages() -> dict[str, str]:
    """Return what a stage would use and can do without, as far as it is missing, and where compiled kernels
    are kept.
    """
    missing = []
    for name, module in (("DALI", "nvidia.dali"), ("tyro", "tyro")):
        if not _is_there(module):
            missing.append(name)
    notes = {"compiled kernels": str(compiled_kernels())}
    if missing:
        notes["not installed"] = f"{' and '.join(missing)}: no stage needs them; rows that do are left out"
    return notes


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def backends(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each backend for every shape that both were measured for: the table that
    kernels/backends keeps.
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


def _keep_tuned(results: Path) -> None:
    """Copy the tiles that were chosen by measurement: they may ship as kernels/tuned/*.json."""
    if not torch.cuda.is_available():
        return
    tuned = _tune.cache_file(torch.cuda.get_device_name())
    if tuned.exists():
        shutil.copy(tuned, results / f"tuned-{tuned.name}")


def _replace(file: Path, text: str) -> None:
    """Write ``text`` so that a reader, and whoever ends this process, finds the old or the new one."""
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
        help="default: bench/results",
    )
    limits = ", ".join(f"{seconds:.0f}" for seconds in SECONDS.values())
    parser.add_argument(
        "--seconds", type=float, help=f"when a stage ends by itself (default: {limits} for stages 1, 2, 3)"
    )
    parser.add_argument(
        "--compiled",
        type=Path,
        metavar="DIR",
        help="take compiled kernels from another run's triton-cache.tgz.* there",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="without a GPU, tiny, in a copy of the tracked files and a bare venv",
    )
    parser.add_argument(
        "--plant-fault",
        choices=FAULTS,
        help="let kernels compute something else, or crash: the summary must show it",
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
        parser.error(f"--compiled {options.compiled} holds no triton-cache.tgz.*")
    if not (options.rehearse or options.in_rehearsal or torch.cuda.is_available()):
        parser.error(
            f"torch {torch.__version__} sees no CUDA GPU on this machine; --rehearse runs a stage without one"
        )
    if options.rehearse and options.compiled is not None:
        parser.error("--compiled is for a GPU: a rehearsal compiles nothing")


def _rehearse(options: argparse.Namespace, parser: argparse.ArgumentParser) -> NoReturn:
    given = {"stage": options.stage, "seconds": options.seconds, "plant-fault": options.plant_fault}
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
    try:
        sys.exit(rehearse(arguments, options.results))
    except CannotRehearse as reason:
        parser.error(str(reason))


def surroundings(options: argparse.Namespace, work: Path) -> Surroundings:
    """Return what all parts share. Caches go where the next call finds them."""
    for name, folder in CACHES.items():
        if name not in os.environ and os.access(Path(folder).parent, os.W_OK):
            os.environ[name] = folder
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    options.results.mkdir(parents=True, exist_ok=True)
    return Surroundings(
        work, options.results.resolve(), environment, options.in_rehearsal, options.plant_fault
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of scripts/gpu_suite.py. Returns 1 where something did not hold, 2 for bad input."""
    # Ended from outside, it ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup wants it
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="fastcyclegan-suite-") as work:
        around = surroundings(options, Path(work))
        stages = list(STAGES)
        if options.stage is not None:
            stages = [options.stage]
        printer, status = Printer(len(stages)), 0
        if options.compiled is not None:
            printer.line(told_of_compiled(options.compiled))
        try:
            for stage in stages:
                suite = Suite(stage, around, _limit(stage, options), printer)
                status = max(status, suite.run(STAGES[stage]))
        except KeyboardInterrupt:
            print(f"\nended from outside; what was known is in {options.results}", flush=True)
            return 130
    return status


def _limit(stage: int, options: argparse.Namespace) -> float:
    """Return the seconds after which ``stage`` ends by itself."""
    if options.seconds is not None:
        return float(options.seconds)
    if options.in_rehearsal:
        return REHEARSAL
    return SECONDS[stage]


if __name__ == "__main__":
    sys.exit(main())
