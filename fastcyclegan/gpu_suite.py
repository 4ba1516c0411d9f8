"""The one command for a machine with a GPU: parity tests that are not interpreted, then every bench; one JSON and one Markdown table.

Needs torch, triton, numpy, Pillow, pytest and pytest-benchmark, and the checkout; no library of the command line. Run it from a checkout.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastcyclegan.kernels import _backend, _tune

ROOT = Path(__file__).resolve().parents[1]
# Here every test takes the GPU where there is one; elsewhere those that are marked do.
ON_THE_DEVICE = ["tests/kernels", "tests/test_blocks.py", "tests/test_networks.py"]
# The most telling first; each may take half of what time is left, the last one all.
BENCHES = [
    "bench/bench_residual_block.py",
    "bench/bench_reflect_conv.py",
    "bench/bench_instance_norm.py",
    "bench/bench_train_step.py",
    "bench/bench_loader.py",
]
TESTS_SHARE = 0.5
# Providers that are not an answer but what answers are compared with.
CEILINGS = ("copy", "matmul")


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


def run_bench(file: str, seconds: float) -> tuple[int, list[dict[str, Any]]]:
    """Run one bench file and return its exit status and what pytest-benchmark wrote: a dict for each bench."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "bench.json"
        arguments = [file, "--benchmark-only", "-q", f"--benchmark-json={result}", f"--bench-budget={0.8 * seconds:.0f}"]
        status, _ = run_pytest(arguments, seconds)
        rows = json.loads(result.read_text())["benchmarks"] if result.exists() and result.stat().st_size else []
    return status, [{"file": file, **row_of(row)} for row in rows]


def row_of(bench: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of one bench: median, extremes and rounds, and what it said of itself."""
    stats = bench["stats"]
    kept = {"group": bench["group"], "median_s": stats["median"], "min_s": stats["min"], "max_s": stats["max"], "rounds": stats["rounds"]}
    return {**kept, **bench["extra_info"]}


def machine() -> dict[str, str]:
    """Return what a figure must carry: GPU, driver, versions, commit and date."""
    import triton

    def said_by(*command: str) -> str:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"

    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "commit": said_by("git", "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def markdown(results: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table: each group's providers, beside its copy or matrix product (rates) and its first provider (times)."""
    yield "# " + ", ".join(f"{key} {value}" if key != "gpu" else value for key, value in results["machine"].items())
    for name, tests in results["tests"].items():
        yield f"\nTests, {name}: {tests['summary']}"
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results["benches"]:
        groups.setdefault(row["group"], []).append(row)
    for group, rows in groups.items():
        yield f"\n## {group}\n"
        yield "| provider | median | min to max | rounds | rate | of the ceiling | speed-up |"
        yield "|---|---|---|---|---|---|---|"
        ceiling = next((rate_of(row) for row in rows if row.get("provider") in CEILINGS), None)
        first = next((row for row in rows if row.get("provider") not in CEILINGS), rows[0])
        for row in rows:
            yield "| " + " | ".join(cells(row, ceiling, first)) + " |"


def rate_of(row: dict[str, Any]) -> float | None:
    """Return the bytes or floating-point operations of ``row`` in a second, None where it counts neither."""
    amount: float | None = row.get("bytes", row.get("flops"))
    return None if amount is None else amount / row["median_s"]


def cells(row: dict[str, Any], ceiling: float | None, first: dict[str, Any]) -> Iterator[str]:
    each = row.get("operations", 1)
    yield str(row.get("provider", ""))
    yield f"{row['median_s'] / each * 1e6:,.1f} us"
    yield f"{row['min_s'] / each * 1e6:,.1f} to {row['max_s'] / each * 1e6:,.1f}"
    yield str(row["rounds"])
    rate = rate_of(row)
    unit = "GB/s" if "bytes" in row else "GFLOP/s"
    yield f"{rate / 1e9:,.0f} {unit}" if rate else ""
    yield f"{100 * rate / ceiling:.0f} %" if rate and ceiling else ""
    speed_up = (first["median_s"] / first.get("operations", 1)) / (row["median_s"] / each)
    yield f"{speed_up:.2f}x" if row.get("provider") not in CEILINGS else ""


def backends(benches: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the milliseconds of each backend for every shape that both were measured for: the table that kernels/backends keeps."""
    table: dict[str, dict[str, float]] = {}
    for row in benches:
        if "backend_key" in row:
            table.setdefault(row["backend_key"], {})[row["backend"]] = 1e3 * row["median_s"] / row.get("operations", 1)
    return {key: times for key, times in sorted(table.items()) if {"triton", "cudnn"} <= set(times)}


def main() -> int:
    """The command line of scripts/gpu_suite.py. Returns 1 where a test or a bench failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480, help="time for all of it; half for the tests at most (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results", metavar="DIR", help="where the two files go")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA GPU on this machine")
    if not (ROOT / "tests").is_dir():
        parser.error(f"{ROOT} is no checkout: the tests and benches are not part of the installed package")
    end = time.monotonic() + options.seconds
    results: dict[str, Any] = {"machine": machine(), "tests": run_tests(options.seconds * TESTS_SHARE), "benches": []}
    statuses = [tests["status"] for tests in results["tests"].values()]
    write(results, options.results)
    for file in BENCHES:
        left = end - time.monotonic()
        status, rows = run_bench(file, max(10, left if file == BENCHES[-1] else left / 2))
        statuses.append(status)
        results["benches"] += rows
        write(results, options.results)
    print("\n".join(markdown(results)))
    return 1 if any(statuses) else 0


def write(results: dict[str, Any], folder: Path) -> None:
    """Write both files, named by GPU and versions, and what was chosen by measurement: configurations and backends.

    Those may ship, as kernels/tuned/*.json and kernels/backends/*.json.

    It is called after every bench, so that what was measured is kept if a later one is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = results["machine"]
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", f"{names['gpu']} torch {names['torch']} triton {names['triton']}")
    (folder / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{stem}.md").write_text("\n".join(markdown(results)) + "\n")
    if table := backends(results["benches"]):
        (folder / "backends").mkdir(exist_ok=True)
        (folder / "backends" / _backend.table_file(names["gpu"]).name).write_text(json.dumps(table, indent=1) + "\n")
    tuned = _tune.cache_file(torch.device("cuda"))
    if tuned.exists():
        shutil.copy(tuned, folder / f"tuned-{tuned.name}")


if __name__ == "__main__":
    sys.exit(main())
