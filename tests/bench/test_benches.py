"""The benches themselves, as a user starts them: at the smallest sizes, out of time, and with a wrong result
planted.
"""

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
from bench.machine import DEVICE, PeakMemory, conditions, held_bytes, machine

ROOT = Path(__file__).parents[2]
UNCOMPILED = ["--bench-quick", "-k", "not compiled and not import"]


def benches(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--benchmark-only", "-p", "no:cacheprovider", *arguments]
    # Not as a part of this run of pytest, which may have workers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Results]:
    """What every bench prints and writes at the smallest sizes, without torch.compile."""
    file = tmp_path_factory.mktemp("results") / "quick.json"
    done = benches("bench", *UNCOMPILED, f"--benchmark-json={file}")
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout, read_results(file)


def test_every_file_measures_something(quick: tuple[str, Results]) -> None:
    output, results = quick
    assert {row.file for row in results.rows} == {path.name for path in (ROOT / "bench").glob("bench_*.py")}
    assert results.machine["hardware"] in output
    assert "--bench-quick: sizes for tests, no figure here means anything" in output
    assert results.quick
    assert all(row.info["parity"] == "held" for row in results.rows)


def test_all_providers_of_a_group_have_the_same_rounds(quick: tuple[str, Results]) -> None:
    for group, rows in quick[1].groups.items():
        assert len({len(row.seconds) for row in rows}) == 1, group
    steps = [row.provider for row in quick[1].rows if row.file == "bench_train_step.py"]
    assert {"official", "ours"} <= set(steps)


def test_the_most_telling_come_first(quick: tuple[str, Results]) -> None:
    order = list(dict.fromkeys(row.file for row in quick[1].rows))
    assert order[0] == "bench_train_step.py"
    assert (
        order.index("bench_generator.py")
        < order.index("bench_residual_block.py")
        < order.index("bench_start_up.py")
    )


def test_nothing_begins_when_time_is_up() -> None:
    done = benches("bench/bench_train_step.py", "bench/bench_counts.py", "--bench-quick", "--bench-budget=0")
    assert done.returncode == 0
    assert "0 s are left of the budget of 0 s" in done.stdout
    assert " passed" not in done.stdout.splitlines()[-1]


def test_a_planted_wrong_result_has_no_figure(tmp_path: Path) -> None:
    file = tmp_path / "faulty.json"
    files = [
        f"bench/bench_{name}.py"
        for name in ("train_step", "generator", "instance_norm", "reflect_conv", "residual_block")
    ]
    done = benches(*files, *UNCOMPILED, "--plant-fault", f"--benchmark-json={file}")
    assert done.returncode == 1
    rows = read_results(file).rows
    assert {row.file for row in rows} == {Path(name).name for name in files}
    assert "ours" not in {row.provider for row in rows}
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == sum("ours" in line for line in failed) == len({row.group for row in rows})
    assert len(
        re.findall(r"\nE +AssertionError: ours: .*relative error .* against float64, allowed", done.stdout)
    ) == len(failed)


def test_a_result_carries_its_machine() -> None:
    about = machine()
    assert {"hardware", "device", "torch", "triton", "python", "system", "commit", "date"} <= about.keys()
    assert about["torch"] == torch.__version__
    assert all(isinstance(value, str) for value in conditions().values())


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU it is the GPU's memory that is measured")
def test_peak_memory_is_seen() -> None:
    with PeakMemory() as memory:
        x: Any = torch.ones(64 << 20)
        x = None
    if memory.bytes is None:
        pytest.skip("this system shows no high-water mark")
    assert 0.9 * (256 << 20) < memory.bytes < 1.5 * (256 << 20)
    assert x is None
    y = torch.zeros(10)
    assert held_bytes({"a": [y, y[2:]], "b": (torch.zeros(3, dtype=torch.uint8), "text")}) == 43
