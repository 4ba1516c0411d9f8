"""The one command for a machine with a GPU: parity tests that are not interpreted, then every bench; one JSON and one Markdown table.

Needs torch, triton, numpy, Pillow, pytest and pytest-benchmark, and the checkout; no library of the command line. Run it from a checkout.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from figures import Results, Row, read_results
from machine import ROOT, machine
from report import markdown

from fastcyclegan.kernels import _backend, _tune

# Here every test takes the GPU where there is one; elsewhere those that are marked do.
ON_THE_DEVICE = ["tests/kernels", "tests/test_blocks.py", "tests/test_networks.py", "tests/test_compat.py"]
MOST_FOR_TESTS = 240.0
# Between the last bench that begins and the end of the process.
STOPPING = 45.0
# For one step under the profiler.
PROFILING = 60.0


def marked_tests() -> list[str]:
    """Return the other test files that have tests for a GPU."""
    files = sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()
    )
    return [file for file in files if not file.startswith(tuple(ON_THE_DEVICE))]


def run_pytest(arguments: list[str], seconds: float) -> tuple[int, str]:
    """Run pytest in the checkout, show what it prints, and return its exit status and output; 124 where ``seconds`` were not enough."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    print("$", " ".join(command[1:]), flush=True)
    lines: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        # pytest's own limits end one test; this one ends the process.
        ended = threading.Event()

        def end() -> None:
            ended.set()
            process.kill()

        limit = threading.Timer(max(1.0, seconds), end)
        limit.start()
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        limit.cancel()
    return (124 if ended.is_set() else process.returncode), "".join(lines)


def run_tests(seconds: float) -> dict[str, Any]:
    """Run the parity tests and return their exit status and closing lines."""
    status, output = run_pytest([*ON_THE_DEVICE, "-q", "--durations=5"], seconds * 0.7)
    found = {"kernels, blocks and networks": {"status": status, "summary": closing_line(output), "failed": failures(output)}}
    if files := marked_tests():
        status, output = run_pytest([*files, "-m", "gpu", "-q"], seconds * 0.3)
        found["others marked gpu"] = {"status": status, "summary": closing_line(output), "failed": failures(output)}
    return found


def closing_line(output: str) -> str:
    lines = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|error|skipped|deselected)", line)]
    return lines[-1].strip("= ") if lines else "no result"


def failures(output: str) -> list[str]:
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)


def run_benches(seconds: float, file: Path) -> tuple[int, list[Row]]:
    """Run the benches, the most telling first, and return the exit status and the rows; what was measured is in ``file`` at any time."""
    file.unlink(missing_ok=True)
    budget = max(1.0, seconds - STOPPING)
    status, _ = run_pytest(["bench", "--benchmark-only", "-q", f"--benchmark-json={file}", f"--bench-budget={budget:.0f}"], seconds)
    return status, read_results(file).rows if file.exists() else []


def run_profile(seconds: float, folder: Path) -> None:
    """Put one compiled step's trace and tables into ``folder``/profile. A profile that fails is said, and fails nothing else."""
    command = [sys.executable, str(ROOT / "scripts" / "profile_step.py"), "--output", str(folder / "profile")]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"no profile: it took more than {seconds:.0f} s")
        return
    print(done.stdout if done.returncode == 0 else f"no profile: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    if done.returncode == 0:
        (folder / "profile" / "profile.md").write_text(done.stdout)


def backends(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each backend for every shape that both were measured for: the table that kernels/backends keeps."""
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        if "backend_key" in row.info:
            table.setdefault(row.info["backend_key"], {})[row.info["backend"]] = 1e3 * row.each.median
    return {key: times for key, times in sorted(table.items()) if {"triton", "cudnn"} <= set(times)}


def main() -> int:
    """The command line of scripts/gpu_suite.py. Returns 1 where a test or a bench failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=570, help="time for all of it, at most 240 for the tests (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results", metavar="DIR", help="where the two files go")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA GPU on this machine")
    end = time.monotonic() + options.seconds
    about = machine()
    options.results.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", f"{about['hardware']} torch {about['torch']} triton {about['triton']}")
    file = options.results / f"{stem}.json"
    tests = run_tests(min(MOST_FOR_TESTS, options.seconds / 2))
    status, rows = run_benches(end - time.monotonic() - PROFILING, file)
    run_profile(max(10.0, end - time.monotonic()), options.results)
    results = Results(about, rows, tests)
    write(results, file)
    print("\n".join(markdown(results)))
    return 1 if any([status, *(found["status"] for found in tests.values())]) else 0


def write(results: Results, file: Path) -> None:
    """Write the tests' outcome into the results' file, the table beside it, and what was chosen by measurement: tiles and backends.

    Those may ship, as kernels/tuned/*.json and kernels/backends/*.json.
    """
    found = json.loads(file.read_text()) if file.exists() else {"machine_info": {"fastcyclegan": results.machine}, "benchmarks": []}
    file.write_text(json.dumps({**found, "tests": results.tests}, indent=1) + "\n")
    file.with_suffix(".md").write_text("\n".join(markdown(results)) + "\n")
    if table := backends(results.rows):
        (file.parent / "backends").mkdir(exist_ok=True)
        (file.parent / "backends" / _backend.table_file(results.machine["hardware"]).name).write_text(json.dumps(table, indent=1) + "\n")
    tuned = _tune.cache_file(torch.device("cuda"))
    if tuned.exists():
        shutil.copy(tuned, file.parent / f"tuned-{tuned.name}")


if __name__ == "__main__":
    sys.exit(main())
