"""The GPU suite's own logic, on made-up results: what it runs, what it writes, and that a failure is not lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcyclegan import gpu_suite
from fastcyclegan.kernels import _backend

ROOT = Path(__file__).parents[1]


def bench(group: str, provider: str, median: float, **extra: Any) -> dict[str, Any]:
    return {"group": group, "provider": provider, "median_s": median, "min_s": median / 2, "max_s": 2 * median, "rounds": 3, **extra}


def test_tables_name_providers_and_ratios() -> None:
    benches = [
        bench("norm", "copy", 1e-6, bytes=3000, operations=1),
        bench("norm", "eager", 8e-6, bytes=3000, operations=1),
        bench("norm", "ours", 2e-6, bytes=3000, operations=1),
        bench("step", "official_order", 2.0),
        bench("step", "ours", 1.0),
    ]
    results = {"machine": {"gpu": "Test GPU", "torch": "2.13"}, "tests": {"all": {"summary": "3 passed"}}, "benches": benches}
    lines = list(gpu_suite.markdown(results))
    assert lines[0] == "# Test GPU, torch 2.13"
    assert "| ours | 2.0 us | 1.0 to 4.0 | 3 | 2 GB/s | 50 % | 4.00x |" in lines
    assert "| ours | 1,000,000.0 us | 500,000.0 to 2,000,000.0 | 3 |  |  | 2.00x |" in lines


def test_the_backend_of_a_shape_is_the_faster_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the rows of the benches to what a convolution asks; a shape of which one was measured alone stays unmeasured."""
    x = torch.zeros(3, 8, 5, 5)
    keys = {out: _backend.backend_key("reflect_conv", x.dtype, 3, 1, 25, 8, out, 3) for out in (8, 16, 32)}
    rows = [("triton", 8, 2.0, 1), ("cudnn", 8, 6.0, 4), ("triton", 16, 1.0, 1), ("cudnn", 16, 2.0, 1), ("cudnn", 32, 1.0, 1)]
    benches = [bench("g", "p", s, backend=b, backend_key=keys[out], operations=n) for b, out, s, n in rows]
    table = gpu_suite.backends([*benches, bench("step", "ours", 1.0)])
    assert table == {keys[8]: {"triton": 2000.0, "cudnn": 1500.0}, keys[16]: {"triton": 1000.0, "cudnn": 2000.0}}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Test/GPU")
    monkeypatch.setattr(_backend, "SHIPPED", tmp_path)
    _backend._table.cache_clear()
    assert _backend.describe_backends(torch.device("cuda")) == "Triton (unmeasured on this device)"
    _backend.table_file("Test/GPU").write_text(json.dumps(table))
    _backend._table.cache_clear()
    assert "Triton is faster in 1, cuDNN in 1" in _backend.describe_backends(torch.device("cuda"))

    class OnGpu:
        """As much of a tensor as a look-up asks for."""

        device, dtype, shape = torch.device("cuda"), x.dtype, x.shape

    found = [_backend.backend_of("reflect_conv", OnGpu(), x.dtype, 1, out, 3) for out in (8, 16, 32)]  # type: ignore[arg-type]
    assert found == ["cudnn", "triton", "triton"]
    assert _backend.backend_of("reflect_conv", x, x.dtype, 1, 8, 3) == "triton"
    _backend._table.cache_clear()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A GPU, and a pytest that is not run: the arguments it was called with; its benches write one row."""
    calls: list[list[str]] = []

    def run_pytest(arguments: list[str], seconds: float) -> tuple[int, str]:
        calls.append(arguments)
        for argument in arguments:
            if argument.startswith("--benchmark-json="):
                stats = {"median": 1.0, "min": 0.5, "max": 2.0, "rounds": 3}
                row = {"group": arguments[0], "stats": stats, "extra_info": {"provider": "ours"}}
                Path(argument.partition("=")[2]).write_text(json.dumps({"benchmarks": [row]}))
        return (
            (1, "FAILED tests/kernels/x.py::y - because\n= 1 failed, 2 passed in 3s =")
            if "tests/kernels" in arguments
            else (0, "4 passed in 1s")
        )

    monkeypatch.setattr(gpu_suite, "run_pytest", run_pytest)
    monkeypatch.setattr(gpu_suite, "machine", lambda: {"gpu": "Test/GPU", "torch": "2.13", "triton": "3.7"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test/GPU")
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--results", str(tmp_path / "results")])
    return calls


def test_everything_is_run_and_a_failure_is_kept(pretended: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main() == 1
    ran = " ".join(" ".join(call) for call in pretended)
    for file in [*gpu_suite.ON_THE_DEVICE, *gpu_suite.BENCHES, "tests/data"]:
        assert file in ran
    written = json.loads((tmp_path / "results" / "Test-GPU-torch-2.13-triton-3.7.json").read_text())
    assert written["tests"]["kernels, blocks and networks"]["failed"] == ["tests/kernels/x.py::y"]
    assert [row["group"] for row in written["benches"]] == gpu_suite.BENCHES
    table = (tmp_path / "results" / "Test-GPU-torch-2.13-triton-3.7.md").read_text()
    assert "1 failed, 2 passed in 3s" in table
    assert table.strip() in capsys.readouterr().out


def test_every_file_that_it_names_is_there() -> None:
    assert all((ROOT / file).exists() for file in gpu_suite.ON_THE_DEVICE + gpu_suite.BENCHES)
    assert sorted(gpu_suite.BENCHES) == sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "bench").glob("bench_*.py"))
    assert all("mark.gpu" in (ROOT / file).read_text() for file in gpu_suite.marked_tests())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "gpu_suite.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sees no CUDA GPU on this machine" in done.stderr


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\necho one test so far\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    status, output = gpu_suite.run_pytest([], 1)
    assert status == 124
    assert output == "one test so far\n"
