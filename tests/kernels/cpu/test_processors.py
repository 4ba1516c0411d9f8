"""Tests of the classes of processors."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
import torch

from fastcyclegan.kernels.cpu import processors

AVX2 = "avx2 fma f16c bmi2"
AVX512 = f"{AVX2} avx512f avx512bw avx512dq avx512vl"
AMX = f"{AVX512} amx_tile amx_bf16"


@pytest.mark.parametrize(
    ("capability", "flags", "limit", "expected"),
    [
        ("AVX512", AMX, "", "amx"),
        ("AVX512", AMX, "AVX512_CORE_AMX", "amx"),
        ("AVX512", AMX, "AVX512_CORE_BF16", "avx512"),
        ("AVX512", AMX, "avx2", "avx512"),
        ("AVX512", f"{AVX512} amx_tile", "", "avx512"),
        ("AVX2", AMX, "", "avx2"),
        ("AVX512", AVX2, "", "avx2"),
        ("AVX2", AVX2, "", "avx2"),
        # A virtual machine can hide one of the instructions.
        ("AVX2", "avx2 fma bmi2", "", ""),
        ("DEFAULT", AMX, "", ""),
        ("VSX", "", "", ""),
    ],
)
def test_classes_of_processors(
    capability: str, flags: str, limit: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: A\nflags\t\t: fpu {flags} ht\n\nflags\t: other\n")
    monkeypatch.setattr(processors, "_PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    processors._instructions.cache_clear()
    try:
        assert processors.processor() == expected
    finally:
        processors._instructions.cache_clear()


@pytest.mark.parametrize(
    ("system", "machine", "capability", "expected"),
    [
        ("linux", "aarch64", "DEFAULT", "neon"),
        ("darwin", "arm64", "DEFAULT", "neon"),
        ("win32", "ARM64", "DEFAULT", "neon"),
        # These systems do not list the extensions.
        ("darwin", "x86_64", "AVX2", "avx2"),
        ("win32", "AMD64", "AVX512", "avx512"),
        ("win32", "AMD64", "DEFAULT", ""),
        ("linux", "x86_64", "AVX2", ""),
        ("freebsd14", "amd64", "AVX2", ""),
        ("win32", "x86", "AVX2", ""),
    ],
)
def test_classes_on_other_systems(
    system: str, machine: str, capability: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(processors, "_instructions", frozenset)
    assert processors.processor() == expected
