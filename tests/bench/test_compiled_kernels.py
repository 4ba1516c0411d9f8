"""Pack compiled kernels on one machine and restore them on another."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from bench import compiled_kernels


def test_packs_and_restores_compiled_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives are split into small pieces, and kernels are restored only at their original paths."""
    cache, results = tmp_path / "tc", tmp_path / "results"
    results.mkdir()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(compiled_kernels, "PIECE", 6 << 10)
    compiled_kernels.save_compiled(results)
    assert not list(results.iterdir())
    for n in range(3):
        (cache / f"k{n}").mkdir(parents=True)
        (cache / f"k{n}" / "a.cubin").write_bytes(os.urandom(3000))
    compiled_kernels.save_compiled(results)
    assert len(list(results.glob("triton-cache.tgz.*"))) == 2
    # There are at most 8 files, including the other files of a stage. Kernels that do not fit are compiled
    # again.
    for n in range(7):
        (results / f"other{n}").touch()
    compiled_kernels.save_compiled(results)
    assert len(list(results.iterdir())) == 8
    for other in results.glob("other*"):
        other.unlink()
    compiled_kernels.save_compiled(results)
    original = {file: file.read_bytes() for file in cache.rglob("a.cubin")}
    for file in original:
        file.unlink()
    assert compiled_kernels.load_compiled(results) == 3
    assert {file: file.read_bytes() for file in cache.rglob("a.cubin")} == original
    for piece in results.iterdir():
        piece.unlink()
    with tarfile.open(results / "triton-cache.tgz.0", "w:gz") as tar:
        tar.add(cache / "k0", arcname=str(tmp_path / "elsewhere").lstrip("/"))
    message = compiled_kernels.restore_compiled(results)
    assert f"they were compiled in a folder other than {cache}" in message
    assert not (tmp_path / "elsewhere").exists()
    (results / "triton-cache.tgz.0").write_bytes(b"\x1f\x8b half")
    assert "are not used: " in compiled_kernels.restore_compiled(results)
