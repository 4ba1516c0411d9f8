"""Run the benches as a user does: at the smallest sizes, without time left, and with an injected fault."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.figures import Results, read_results
from bench.machine import DEVICE, PeakMemory, conditions, machine, tensor_bytes

ROOT = Path(__file__).parents[2]
# The benches into which a fault is injected, with the providers that then compute wrong results.
FAULTY = {
    "train_step": {"ours", "ours_without_kernels"},
    "generator": {"ours", "ours_without_kernels", "ours_fast_fp32", "ours_fast_bf16"},
    "instance_norm": {"ours"},
    "reflect_conv": {"ours"},
    "residual_block": {"ours"},
    "processor": {"cpp"},
    "translate": {"ours, fp32"},
    "tiles": {"exact_tiles"},
}
UNCOMPILED = ["--bench-quick", "-k", "not compiled and not import"]


def benches(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--benchmark-only", "-p", "no:cacheprovider", *arguments]
    # Leave out the variables of this pytest run, which may use workers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Results]:
    """Run all benches at the smallest sizes, without torch.compile, and return their output and results."""
    file = tmp_path_factory.mktemp("results") / "quick.json"
    process = benches("bench", *UNCOMPILED, f"--benchmark-json={file}")
    assert process.returncode == 0, process.stdout[-5000:]
    return process.stdout, read_results(file)


def test_every_file_measures_something(quick: tuple[str, Results]) -> None:
    output, results = quick
    assert {row.file for row in results.rows} == {path.name for path in (ROOT / "bench").glob("bench_*.py")}
    assert results.machine["hardware"] in output
    assert "--bench-quick: test sizes, so the figures are meaningless" in output
    assert results.quick
    assert all(row.info["parity"] == "held" for row in results.rows)


def test_all_providers_of_a_group_have_the_same_rounds(quick: tuple[str, Results]) -> None:
    for group, rows in quick[1].groups.items():
        assert len({len(row.seconds) for row in rows}) == 1, group
    steps = [row.provider for row in quick[1].rows if row.file == "bench_train_step.py"]
    assert {"official", "ours"} <= set(steps)


def test_the_most_informative_benches_run_first(quick: tuple[str, Results]) -> None:
    order = list(dict.fromkeys(row.file for row in quick[1].rows))
    assert order[0] == "bench_train_step.py"
    assert (
        order.index("bench_generator.py")
        < order.index("bench_residual_block.py")
        < order.index("bench_start_up.py")
    )


def test_no_bench_starts_without_time_left() -> None:
    process = benches(
        "bench/bench_train_step.py", "bench/bench_counts.py", "--bench-quick", "--bench-budget=0"
    )
    assert process.returncode == 0
    assert "only 0 s of the 0 s budget remain" in process.stdout
    assert " passed" not in process.stdout.splitlines()[-1]


def test_reports_no_timing_for_a_wrong_result(tmp_path: Path) -> None:
    file = tmp_path / "faulty.json"
    files = [f"bench/bench_{name}.py" for name in FAULTY]
    process = benches(*files, *UNCOMPILED, "--plant-fault", f"--benchmark-json={file}")
    assert process.returncode == 1
    rows = read_results(file).rows
    assert {row.file for row in rows} == {Path(name).name for name in files}
    failed = [line for line in process.stdout.splitlines() if line.startswith("FAILED")]
    for name, providers in FAULTY.items():
        of_this_file = [row for row in rows if row.file == f"bench_{name}.py"]
        assert not providers & {row.provider for row in of_this_file}
        lines = [line for line in failed if f"bench_{name}.py" in line]
        assert {provider for provider in providers if any(f"{provider}]" in line for line in lines)}
        assert all(any(f"{provider}]" in line for provider in providers) for line in lines)
        assert len(lines) >= len({row.group for row in of_this_file})
    errors = re.findall(
        r"\nE +AssertionError: (.*): .*relative error .* against float64, allowed", process.stdout
    )
    assert len(errors) == len(failed)


def test_results_describe_the_machine() -> None:
    about = machine()
    assert {"hardware", "device", "torch", "triton", "python", "system", "commit", "date"} <= about.keys()
    assert about["torch"] == torch.__version__
    assert all(isinstance(value, str) for value in conditions().values())


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU, the GPU's memory is measured instead")
def test_measures_peak_memory() -> None:
    with PeakMemory() as memory:
        x: Any = torch.ones(64 << 20)
        x = None
    if memory.bytes is None:
        pytest.skip("this system has no memory high-water mark")
    assert 0.9 * (256 << 20) < memory.bytes < 1.5 * (256 << 20)
    assert x is None
    y = torch.zeros(10)
    assert tensor_bytes({"a": [y, y[2:]], "b": (torch.zeros(3, dtype=torch.uint8), "text")}) == 43
