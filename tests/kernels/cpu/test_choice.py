"""Tests of the choice between the C++ kernels and PyTorch by measured times."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastcyclegan.kernels.cpu import choice


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the file of a table for this processor, with no entries yet."""
    monkeypatch.setattr(choice, "TABLES", tmp_path)
    monkeypatch.setattr(choice, "processor", lambda: "avx512")
    _forget()
    yield choice.table_file("avx512")
    _forget()


def _forget() -> None:
    choice.times.cache_clear()
    choice._entries.cache_clear()
    choice.is_faster.cache_clear()


def _entry(C: int, O: int, pixels: int, cpp: float, dtype: torch.dtype = torch.float32) -> dict:
    return {choice.key("conv", dtype, 3, 1, C, O, pixels): {"cpp": cpp, "torch": 1.0}}


def test_without_a_table_pytorch_computes(table: Path) -> None:
    assert not choice.is_faster("conv", torch.float32, 3, 1, 256, 256, 64 * 64)


def test_the_most_similar_shape_decides(table: Path) -> None:
    entries = _entry(256, 256, 4096, 0.5) | _entry(16, 16, 4096, 2.0) | _entry(256, 256, 64, 3.0)
    table.write_text(json.dumps(entries))
    measured = [(256, 256, 4096, True), (16, 16, 4096, False), (256, 256, 64, False)]
    for C, O, pixels, expected in [
        *measured,
        (200, 300, 5000, True),
        (20, 8, 9999, False),
        (256, 256, 99, False),
    ]:
        assert choice.is_faster("conv", torch.float32, 3, 1, C, O, pixels) is expected


def test_another_dtype_kernel_stride_or_operator_does_not_decide(table: Path) -> None:
    table.write_text(json.dumps(_entry(256, 256, 4096, 0.5)))
    size = (256, 256, 4096)
    assert choice.is_faster("conv", torch.float32, 3, 1, *size)
    assert not choice.is_faster("conv", torch.bfloat16, 3, 1, *size)
    assert not choice.is_faster("conv", torch.float32, 5, 1, *size)
    assert not choice.is_faster("conv", torch.float32, 3, 2, *size)
    assert not choice.is_faster("transposed", torch.float32, 3, 1, *size)


@pytest.mark.parametrize("op", ["once", "dgrad", "wgrad"])
def test_without_times_of_a_gradient_those_of_the_convolution_decide(table: Path, op: str) -> None:
    shape = (torch.float32, 3, 1, 256, 256, 4096)
    faster = {choice.key("conv", *shape): {"cpp": 0.5, "torch": 1.0}}
    table.write_text(json.dumps(faster))
    assert choice.is_faster(op, *shape)
    _forget()
    table.write_text(json.dumps(faster | {choice.key(op, *shape): {"cpp": 2.0, "torch": 1.0}}))
    assert not choice.is_faster(op, *shape)
    assert choice.is_faster("conv", *shape)


@pytest.mark.parametrize("file", sorted(choice.TABLES.glob("*.json")), ids=lambda file: file.stem)
def test_shipped_tables_can_be_read(file: Path) -> None:
    assert file.stem in ("avx2", "avx512", "amx")
    for name, times in choice.times(file.stem).items():
        op, dtype, kernel, stride, channels, pixels = name.split()
        assert op in ("conv", "once", "dgrad", "wgrad")
        C, O = map(int, channels.split("-"))
        size = (int(kernel.split("x")[0]), int(stride[1:]), C, O, int(pixels))
        assert choice.key(op, getattr(torch, dtype), *size) == name
        assert times.keys() == {"cpp", "torch"}
        assert all(ms > 0 for ms in times.values())
