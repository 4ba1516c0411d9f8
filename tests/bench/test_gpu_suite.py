"""The GPU suite's own logic, on made-up results: what it runs, what it writes, and that a failure is not lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_suite
import pytest
import torch
from figures import Row, read_results

from fastcyclegan.kernels import _backend

ROOT = Path(__file__).parents[2]


def bench(group: str, provider: str, median: float, **info: Any) -> Row:
    return Row("bench_x.py", group, provider, [median / 2, median, 2 * median], info)


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
    about = {"hardware": "Test/GPU", "device": "cuda", "torch": "2.13", "triton": "3.7"}

    def run_pytest(arguments: list[str], seconds: float) -> tuple[int, str]:
        calls.append(arguments)
        for argument in arguments:
            if argument.startswith("--benchmark-json="):
                stats = {"data": [0.5, 1.0, 2.0]}
                row = {"group": "g", "fullname": "bench/bench_x.py::b", "name": "b", "stats": stats, "extra_info": {"provider": "ours"}}
                written = {"machine_info": {"fastcyclegan": about}, "benchmarks": [row]}
                Path(argument.partition("=")[2]).write_text(json.dumps(written))
        return (
            (1, "FAILED tests/kernels/x.py::y - because\n= 1 failed, 2 passed in 3s =")
            if "tests/kernels" in arguments
            else (0, "4 passed in 1s")
        )

    monkeypatch.setattr(gpu_suite, "run_pytest", run_pytest)
    monkeypatch.setattr(gpu_suite, "run_profile", lambda seconds, folder: calls.append(["profile", str(folder)]))
    monkeypatch.setattr(gpu_suite, "machine", lambda: about)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test/GPU")
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--results", str(tmp_path / "results")])
    return calls


def test_everything_is_run_and_a_failure_is_kept(pretended: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_suite.main() == 1
    ran = " ".join(" ".join(call) for call in pretended)
    for file in [*gpu_suite.ON_THE_DEVICE, "bench", "tests/data", "profile"]:
        assert file in ran
    file = tmp_path / "results" / "Test-GPU-torch-2.13-triton-3.7.json"
    assert json.loads(file.read_text())["tests"]["kernels, blocks and networks"]["failed"] == ["tests/kernels/x.py::y"]
    assert [row.provider for row in read_results(file).rows] == ["ours"]
    table = (tmp_path / "results" / "Test-GPU-torch-2.13-triton-3.7.md").read_text()
    assert "1 failed, 2 passed in 3s" in table
    assert table.strip() in capsys.readouterr().out


def test_every_file_that_it_names_is_there() -> None:
    assert all((ROOT / file).exists() for file in gpu_suite.ON_THE_DEVICE)
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


def test_a_profile_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    python = tmp_path / "python"
    for script, said in (
        ("echo a table", "a table"),
        ("echo no chip >&2; exit 1", "no profile: no chip"),
        ("exec sleep 9", "more than 0 s"),
    ):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        (tmp_path / "profile").mkdir(exist_ok=True)
        gpu_suite.run_profile(0.3, tmp_path)
        assert said in capsys.readouterr().out
    assert (tmp_path / "profile" / "profile.md").read_text() == "a table\n"
