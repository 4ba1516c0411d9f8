"""Tests of the command that repeats a failed launch from its record.

Kernels are compiled in a separate process, for a GPU that this machine does not have.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from fastcyclegan.devtools import show_failure
from fastcyclegan.kernels import _records
from tests.kernels.records import record_of_a_failure

# Handles several records in one process, because starting one takes longer than a compilation.
SCRIPT = """
import sys
from fastcyclegan.devtools import show_failure
print([show_failure.main([file]) for file in sys.argv[1:]])
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_tensors_are_rebuilt_as_they_were() -> None:
    """A tensor is rebuilt from its description with the same layout, alignment and memory behind it.

    A launch can use the memory behind a tensor for the gradients of other weights.
    """
    memory = torch.zeros(1000)
    assert memory.data_ptr() % 16 == 0
    x = memory[6:].as_strided((2, 3, 4), (12, 1, 3))
    described = _records.describe_argument(x)
    assert (described["aligned"], described["room"]) == (8, 994)
    again = show_failure._tensor(described, torch.device("cpu"))
    assert _records.describe_argument(again) == described
    descriptor = _records.describe_argument(TensorDescriptor(memory, [20, 48], [48, 1], [16, 32]))
    value = show_failure._value(
        descriptor, lambda described: show_failure._tensor(described, torch.device("cpu"))
    )
    assert (value.shape, value.strides, value.block_shape) == ([20, 48], [48, 1], [16, 32])
    assert _records.argument_text(descriptor).startswith(
        "descriptor [20, 48] strides [48, 1] box [16, 32] of float32[1000] strides [1] aligned"
    )


def test_a_launch_on_the_same_gpu_is_repeated(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Repeating a recorded launch really runs the kernel, here in the interpreter.

    The output is filled with NaN at first. The norm of zeros is zero, and only the launch can write it.
    """
    record = json.loads(record_of_a_failure(monkeypatch).read_text())
    made: list[torch.Tensor] = []
    tensor = show_failure._tensor
    monkeypatch.setattr(
        show_failure,
        "_tensor",
        lambda *a: made.append(tensor(*a).fill_(torch.nan if len(made) else 0)) or made[-1],
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert (
        show_failure._launch_again(record, torch.device(device))
        == "It now compiles and runs on cpu, interpreted, with zeros as data."
    )
    assert not made[1].any()


def test_the_command_on_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For a kernel that now compiles, the exit code is 0.

    For one that fails again, it is 1, and the compiler's error message is printed.
    """
    file = record_of_a_failure(monkeypatch)
    record = json.loads(file.read_text())
    broken, invalid = tmp_path / "broken.json", record["configuration"] | {"BLOCK_S": 48}
    broken.write_text(json.dumps({**record, "configuration": invalid}))
    process = run("-c", SCRIPT, str(file), str(broken))
    assert process.stdout.splitlines()[-1:] == ["[0, 1]"], process.stdout + process.stderr
    assert "It now compiles for sm_90 (" in process.stdout
    assert "It was not launched, because this machine has no cpu, interpreted." in process.stdout
    assert "It fails again:\nCompilationError: at " in process.stdout
    assert "power of 2" in process.stdout
    assert "  float32[2, 5, 4, 4] strides [80, 16, 4, 1] aligned" in process.stdout


def test_files_that_are_not_records_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = json.loads(record_of_a_failure(monkeypatch).read_text())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    missing, text, other = tmp_path / "missing.json", tmp_path / "text.json", tmp_path / "other.json"
    text.write_text("{")
    other.write_text("[]")
    gone = tmp_path / "gone.json"
    gone.write_text(json.dumps({"format": 1, **dict.fromkeys(show_failure._KEYS), "kernel": "_gone_kernel"}))
    expected = [
        (missing, f"cannot read {missing}: No such file or directory"),
        (text, f"{text} is not a record of a launch"),
        (other, f"{other} is not a record of a launch"),
        (gone, f"{gone} refers to kernel _gone_kernel, which does not exist in this version"),
    ]
    tensor = good["arguments"][0]
    damaged = [
        {"kernel": ["a"]}, {"arguments": 3}, {"arguments": [{"shape": [1]}]},
        {"arguments": [{**tensor, "dtype": "flot99"}]},
        {"arguments": [{**tensor, "box": 3, "base": 3}]}, {"configuration": {}}, {"configuration": 3},
        {"constants": 3},
        {"capability": "x"},
    ]  # fmt: skip
    for number, damage in enumerate(damaged):
        file = tmp_path / f"damaged{number}.json"
        file.write_text(json.dumps({**good, **damage}))
        expected.append((file, f"{file} is not a record of a launch"))
    for file, message in expected:
        assert show_failure.main([str(file)]) == 2
        assert capsys.readouterr() == ("", f"show_failure: {message}\n")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    gone.write_text(json.dumps({"format": 1, **dict.fromkeys(show_failure._KEYS)}))
    assert show_failure.main([str(gone)]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_help_imports_no_triton() -> None:
    script = (
        "import runpy, sys; sys.argv[1:] = ['--help']\ntry:"
        " runpy.run_module('fastcyclegan.devtools.show_failure', run_name='__main__')\n"
    )
    process = run("-c", script + "except SystemExit as end: print(end.code, 'triton' in sys.modules)")
    assert process.stdout.splitlines()[-1] == "0 False", process.stdout + process.stderr
    assert "the record file named in the failure message" in process.stdout
