"""DALI's blocks: their size, the file that makes one fail, and the resources freed when the loader stops."""

from __future__ import annotations

import gc
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastcyclegan.data import dali_loader
from fastcyclegan.data.dali_loader import DaliLoader
from fastcyclegan.data.dali_pipeline import DaliPipeline, EncodedFile
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.loader import Source
from fastcyclegan.data.pillow_loader import FolderLoader
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import UserError
from tests.conftest import both, same_batch, source, unpaired
from tests.data.dali_files import levels, varied

CPU = torch.device("cpu")


def test_large_images_make_smaller_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = unpaired(tmp_path)
    launched: list[int] = []
    launch = DaliPipeline.launch

    def counted(self: DaliPipeline, files: list[EncodedFile]) -> None:
        launched.append(len(files))
        launch(self, files)

    monkeypatch.setattr(DaliPipeline, "launch", counted)
    expected = list(DaliLoader(both(a, b), Plan(11, 5, 3), CPU).batches(0, 100))
    assert launched == [64, 64, 64, 8]
    launched.clear()
    monkeypatch.setattr(dali_loader, "BLOCK_BYTES", 10 * 24 * 20 * 3)
    actual = list(DaliLoader(both(a, b), Plan(11, 5, 3), CPU).batches(0, 100))
    assert launched == [10] * 20
    assert all(same_batch(x, y) for x, y in zip(expected, actual, strict=True))


def replace_checked_file(a: Source, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    stat = path.stat()
    a.checked[path] = replace(a.checked[path], bytes=stat.st_size, mtime_ns=stat.st_mtime_ns)


def test_pillow_reads_a_file_that_dali_cannot_parse(tmp_path: Path) -> None:
    """A PNG without its end is read by Pillow, and never passed to DALI.

    Pillow does not need the end of the file. DALI does, and might crash without it.
    """
    a, b = unpaired(tmp_path)
    expected = list(FolderLoader(both(a, b), Plan(11, 5, 3), CPU).batches(0, 60))
    replace_checked_file(a, a.paths[2], a.paths[2].read_bytes()[:-12])
    for _ in range(5):
        logged: list[str] = []
        actual = list(
            DaliLoader(both(a, b), Plan(11, 5, 3), CPU, threads=2, log=logged.append).batches(0, 60)
        )
        assert logged == [f"DALI cannot decode {a.paths[2]}, so Pillow reads it"]
    for x, y in zip(expected, actual, strict=True):
        assert x.samples == y.samples
        assert levels(x.A, y.A)[1] <= 4


def test_finds_the_file_that_dali_fails_on(tmp_path: Path) -> None:
    """If the pixels of a file are damaged, the error names the file, although DALI's own error does not."""
    a, b = unpaired(tmp_path)
    damaged = bytearray(a.paths[2].read_bytes())
    damaged[len(damaged) // 2] ^= 255
    replace_checked_file(a, a.paths[2], bytes(damaged))
    logged: list[str] = []
    with pytest.raises(
        UserError,
        match=r"^bad image \S*/A/002.png: broken data stream when reading image file; pass --skip_bad_images",
    ):
        list(DaliLoader(both(a, b), Plan(11, 5, 3), CPU, threads=2).batches(0, 60))
    actual = list(
        DaliLoader(
            both(a, b), Plan(11, 5, 3), CPU, threads=2, log=logged.append, skip_bad_images=True
        ).batches(0, 60)
    )
    assert len(actual) == 60
    assert [line.split(":")[0] for line in logged] == [f"skipped {a.paths[2]}"]


def test_pillow_reads_a_file_that_only_dali_fails_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = unpaired(tmp_path)
    outputs, launch, refused = DaliPipeline._outputs, DaliPipeline.launch, a.paths[2]
    running: list[Path] = []

    def launched(self: DaliPipeline, files: list[EncodedFile]) -> None:
        running[:] = [file.path for file in files]
        launch(self, files)

    def failing(self: DaliPipeline) -> list[object]:
        rows = outputs(self)
        if refused in running:
            raise RuntimeError("cannot")
        return rows

    monkeypatch.setattr(DaliPipeline, "launch", launched)
    monkeypatch.setattr(DaliPipeline, "_outputs", failing)
    logged: list[str] = []
    expected = list(FolderLoader(both(a, b), Plan(11, 5, 3), CPU).batches(0, 100))
    actual = list(DaliLoader(both(a, b), Plan(11, 5, 3), CPU, threads=2, log=logged.append).batches(0, 100))
    assert logged == [f"DALI cannot decode {refused}, so Pillow reads it"]
    for x, y in zip(expected, actual, strict=True):
        assert x.samples == y.samples
        assert max(levels(x.A, y.A)[1], levels(x.B, y.B)[1]) <= 4


def test_a_failure_without_a_bad_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = unpaired(tmp_path)
    outputs, failed = DaliPipeline._outputs, []

    def fails_once(self: DaliPipeline) -> list[object]:
        if not failed:
            failed.append(True)
            raise RuntimeError("out of\nmemory")
        return outputs(self)

    monkeypatch.setattr(DaliPipeline, "_outputs", fails_once)
    with pytest.raises(
        UserError, match="DALI failed: out of memory; pass --loader folder to read with Pillow"
    ):
        list(DaliLoader(both(a, b), Plan(11, 5, 3), CPU).batches(0, 4))


def native_threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def resident() -> int:
    """Return the number of bytes of anonymous memory that this process uses."""
    with open("/proc/self/status") as status:  # noqa: PTH123
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def test_leaves_no_threads_or_memory_behind(tmp_path: Path) -> None:
    """After the loader stops, no threads (not even DALI's own) and no memory remain in use.

    The loader is stopped in the middle of a block, or at the end.
    """
    a, b = unpaired(tmp_path)

    def use(stop_after: int) -> None:
        batches = DaliLoader(both(a, b), Plan(11, 5, 3), CPU, threads=2).batches(0, 200)
        for _ in range(stop_after):
            next(batches)
        batches.close()

    use(200)
    gc.collect()
    threads, memory = native_threads(), resident()
    for n in range(12):
        use(n * 7)
    gc.collect()
    assert native_threads() <= threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastcyclegan")]
    assert resident() - memory < 30 * 2**20


def test_memory_does_not_grow_over_epochs(tmp_path: Path) -> None:
    """A loader that kept the pixels of its batches would take four times what is allowed.

    The allocators of DALI's threads need some epochs, and up to 20 MiB, until they have all that they use.
    """
    a, b = (source(varied(tmp_path / side, n), Fit("resize_and_crop", 72, 64)) for n, side in enumerate("AB"))
    plan = Plan(3, len(a.paths), len(b.paths))
    warm, last = 15 * len(plan), 45 * len(plan)
    seen, yielded = {}, 0
    for n, batch in enumerate(DaliLoader(both(a, b), plan, CPU, threads=2).batches(0, last), 1):
        if n in (warm, last):
            seen[n] = resident()
        if n > warm:
            yielded += batch.A.nbytes + batch.B.nbytes
    assert seen[last] - seen[warm] < yielded / 4, seen
