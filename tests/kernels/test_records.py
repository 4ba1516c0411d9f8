"""Tests of the record of a failed launch: its contents, and the folder that it is written to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcyclegan.kernels import _cache, _records
from fastcyclegan.kernels._failures import KernelError
from fastcyclegan.kernels._launch import Config, Launch
from tests.kernels.records import record_of_a_failure


def test_a_record_describes_the_launch_and_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    file = record_of_a_failure(monkeypatch)
    record = json.loads(file.read_text())
    assert (record["kernel"], record["gpu"], record["capability"]) == (
        "_instance_norm_small_fwd_kernel",
        "cpu, interpreted",
        90,
    )
    assert "CompilationError: at 1:0" in record["error"]
    assert record["arguments"][0] == {
        "dtype": "float32",
        "shape": [2, 5, 4, 4],
        "strides": [80, 16, 4, 1],
        "aligned": 16,
        "room": 160,
    }
    assert record["arguments"][1:4] == [None] * 3
    assert record["constants"]["RESIDUAL"] is False
    assert record["configuration"].keys() >= {"BLOCK_S", "BLOCK_C", "num_warps", "num_stages"}
    # The same launch is written to the same file.
    assert record_of_a_failure(monkeypatch) == file


def test_the_temporary_folder_is_used_if_the_cache_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Records are written to the temporary folder if the cache folder cannot be written.

    If neither can be written, the error message does not mention the command that repeats the launch.
    """
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_cache.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    launch = Launch("_a_kernel", 1, (torch.zeros(3), 1.5, None), {}, Config((), 4))
    command = _records.write_record(launch, "cpu", 90, RuntimeError("planted"))
    assert f"{tmp_path}/temporary/fastcyclegan-{os.getuid()}/failures/a_kernel-" in command
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(_cache.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    assert _records.write_record(launch, "cpu", 90, RuntimeError("planted")) == ""
    error: Any = KernelError(
        "_a_kernel", "kernel _a_kernel does not compile on cpu (RuntimeError: planted)", ""
    )
    assert str(error) == "kernel _a_kernel does not compile on cpu (RuntimeError: planted)"
