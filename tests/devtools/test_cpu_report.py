"""Tests of the report on what computes on this processor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastcyclegan.devtools import cpu_report
from fastcyclegan.kernels.cpu import choice, library, processors, wheel_library

LAYER = "bfloat16 3x3 256 to 256"
FASTER = {
    choice.key(op, torch.bfloat16, 3, 1, 256, 256, 64 * 64): {"cpp": 1.0, "torch": 2.0}
    for op in ("conv", "once", "wgrad")
}
SLOWER = {choice.key("dgrad", torch.bfloat16, 3, 1, 256, 256, 64 * 64): {"cpp": 4.0, "torch": 3.0}}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this be a processor whose kernels are loaded from the wheel, with a table of four times."""
    choice.is_faster.cache_clear()
    monkeypatch.setattr(choice, "times", lambda kind: {**FASTER, **SLOWER} if kind == "avx2" else {})
    monkeypatch.setattr(choice, "_entries", choice._entries.__wrapped__)
    set_class(monkeypatch, "avx2")
    set_answer(monkeypatch, library.Answer("", None, "a.so, built by g++", 0))
    yield
    choice.is_faster.cache_clear()


def set_class(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    for module in (choice, cpu_report):
        monkeypatch.setattr(module, "processor", lambda: kind)


def set_answer(monkeypatch: pytest.MonkeyPatch, answer: library.Answer) -> None:
    monkeypatch.setattr(library, "_answer", answer)


def rows() -> dict[str, str]:
    return dict(cpu_report.report())


@pytest.mark.usefixtures("measured")
def test_what_computes_a_layer_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows()["C++ kernels"] == "a.so, built by g++"
    assert rows()["impl=auto"].startswith("the C++ kernels where they are faster, by 4 measured times in /")
    assert rows()["processor"].endswith(f", class avx2, {torch.get_num_threads()} threads")
    assert rows()[LAYER] == (
        "translation C++ (1 ms, PyTorch 2), forward C++ (1 ms, PyTorch 2), gradient of the image PyTorch"
        " (3 ms, C++ 4), gradient of the weight C++ (1 ms, PyTorch 2)"
    )
    # Nothing was measured in fp32.
    assert rows()[LAYER.replace("bfloat16", "float32")].startswith("translation PyTorch, forward PyTorch,")
    assert cpu_report.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows())
    assert lines[0].startswith(f"versions                 fastcyclegan 0.1.0, torch {torch.__version__}, ")


@pytest.mark.usefixtures("measured")
def test_why_the_kernels_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    set_answer(monkeypatch, library.Answer("needs a C++ compiler, and none was found", None, "", 0))
    assert rows()["C++ kernels"] == "not usable: impl='cpp' needs a C++ compiler, and none was found"
    assert rows()["impl=auto"] == "PyTorch, because the C++ kernels cannot be used"
    assert LAYER not in rows()
    assert cpu_report.main([]) == 1


@pytest.mark.usefixtures("measured")
def test_a_processor_that_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    set_class(monkeypatch, "neon")
    assert rows()["impl=auto"] == "PyTorch, because there is no table of measured times for such a machine"
    assert cpu_report.main([]) == 1
    set_class(monkeypatch, "")
    assert rows()["processor"].startswith(f"{rows()['processor'].partition(',')[0]}, of no class")
    assert rows()["impl=auto"] == "PyTorch, because the C++ kernels cannot be used"


@pytest.mark.usefixtures("measured")
def test_the_wheel_the_compiler_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert "CXX=/nowhere/c++" in rows()["environment"].split()
    missing = "needs a C++ compiler, and CXX='/nowhere/c++' was not found; correct or unset CXX"
    assert rows()["compiler"] == f"none that works: {missing}"
    for found, text in (
        (wheel_library.WheelLibrary(None), "no library for this processor; a checkout has none"),
        (wheel_library.WheelLibrary(None, problem="a.so is damaged"), "a.so is damaged"),
        (wheel_library.WheelLibrary(object(), "g++ 12"), "a library, built by g++ 12"),
    ):
        monkeypatch.setattr(wheel_library, "load", lambda *_, found=found: found)
        assert rows()["installed"] == text


@pytest.mark.skipif(not processors.processor(), reason="needs a processor with AVX2")
def test_the_command() -> None:
    command = [sys.executable, "-m", "fastcyclegan.devtools.cpu_report"]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == (1 if library.why_not_cpp() or not choice.is_measured() else 0)
    assert process.stderr == ""
    assert f"class {processors.processor()}" in process.stdout
    names = [line.split("  ")[0] for line in process.stdout.splitlines()]
    assert names[:4] == ["versions", "processor", "environment", "C++ kernels"]


def test_a_full_disk() -> None:
    command = [sys.executable, "-m", "fastcyclegan.devtools.cpu_report"]
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    text = "cpu_report: cannot print the report: No space left on device\n"
    assert (process.returncode, process.stderr) == (2, text)
