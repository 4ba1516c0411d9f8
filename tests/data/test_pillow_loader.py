"""The Pillow loader and the Pillow reader.

Batches follow the plan whatever the number of workers, which use no shared memory. A worker that dies is
reported, and running workers do not keep Python from exiting.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.data import background, pillow_loader
from fastcyclegan.data.checked_files import check_file
from fastcyclegan.data.choose_loader import Choice, make_reader
from fastcyclegan.data.fit import Fit, load_pixels, take_view
from fastcyclegan.data.image_file import BadImageError
from fastcyclegan.data.loader import Job, Source
from fastcyclegan.data.pillow_loader import FolderLoader, PillowReader
from fastcyclegan.data.sample_plan import Plan, View
from fastcyclegan.errors import StoppedError, UserError
from tests.conftest import both, same_batch, unpaired, write_images

CPU = torch.device("cpu")


def make(
    tmp_path: Path, workers: int = 0, batch: int = 2, channels: tuple[int, int] = (3, 3), **options: object
) -> FolderLoader:
    a, b = unpaired(tmp_path, channels=channels)
    return FolderLoader(both(a, b), Plan(11, 5, 3, batch), CPU, workers=workers, **options)


def test_batches_contain_the_samples_of_the_plan(tmp_path: Path) -> None:
    loader = make(tmp_path)
    batches = list(loader.batches(0, 7))
    assert [len(batch.samples) for batch in batches] == [2, 2, 1, 2, 2, 1, 2]  # the partial batch is kept
    for iteration, batch in enumerate(batches):
        epoch, numbers = loader.plan.batch(iteration)
        assert batch.A.is_contiguous(memory_format=torch.channels_last)
        assert (batch.A.shape[1:], batch.A.dtype) == ((3, 16, 16), torch.float32)
        for row, i in enumerate(numbers):
            sample = loader.plan.sample(epoch, i)
            path = loader.sources["A"].paths[sample.index_A]
            pixels = take_view(
                load_pixels(path, loader.sources["A"].fit), loader.sources["A"].fit, sample.view_A
            ).astype(np.float64)
            assert batch.paths_A[row] == str(path)
            np.testing.assert_allclose(batch.A[row].permute(1, 2, 0).numpy(), pixels / 127.5 - 1, atol=2e-7)


def test_workers_and_start_do_not_change_batches(tmp_path: Path) -> None:
    expected = list(make(tmp_path).batches(0, 6))
    actual = list(make(tmp_path, workers=2).batches(2, 6))
    assert all(same_batch(x, y) for x, y in zip(expected[2:], actual, strict=True))
    assert list(make(tmp_path).batches(3, 3)) == []


def test_gray_and_colour(tmp_path: Path) -> None:
    batch = next(make(tmp_path, channels=(1, 3)).batches(0, 1))
    assert (batch.A.shape[1], batch.B.shape[1]) == (1, 3)


def test_loading_does_not_touch_the_random_state(tmp_path: Path) -> None:
    """Loading leaves torch's generator unchanged, because dropout, and hence a resumed run, depends on it."""
    before = torch.get_rng_state()
    list(make(tmp_path, workers=1).batches(0, 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def _forking() -> Iterator[None]:
    """Fork workers, so that they have the functions that a test replaces."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("_forking")
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_workers_use_no_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker maps a file of /dev/shm, which may be small or full, also after it has sent batches."""

    def shared() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {line.split()[5] for line in lines if "/dev/shm" in line}

    loader, view, before = make(tmp_path, workers=2), Source.view, shared()

    def noting(self: Source, index: int, where: View) -> object:
        (tmp_path / f"{os.getpid()}.txt").write_text("\n".join(shared() - before))
        return view(self, index, where)

    monkeypatch.setattr(Source, "view", noting)
    assert len(list(loader.batches(0, 20))) == 20
    notes = list(tmp_path.glob("*.txt"))
    assert [note.read_text() for note in notes] == [""] * 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.usefixtures("_forking")
def test_a_lack_of_file_descriptors_skips_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    loader = make(tmp_path, workers, skip_bad_images=True, log=pytest.fail)

    def fails(path: Path, fit: Fit, **options: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("PIL.Image.open", raising)
            load_pixels(path, fit, **options)

    def raising(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("fastcyclegan.data.source.load_pixels", fails)
    with pytest.raises(UserError, match=r"\d.png cannot be read: Too many open files"):
        next(loader.batches(0, 4))


@pytest.mark.parametrize(("megabytes", "ahead"), [(1, 8), (48, 5), (10_000, 1)])
def test_a_reader_reads_fewer_large_images_ahead(
    monkeypatch: pytest.MonkeyPatch, megabytes: int, ahead: int
) -> None:
    submitted: list[object] = []
    submit = background.ReadingThreads.submit

    def counted(threads: background.ReadingThreads, *call: Any) -> Future[Any]:
        submitted.append(call)
        return submit(threads, *call)

    row = torch.empty(2**20 * megabytes, dtype=torch.uint8, device="meta")
    monkeypatch.setattr(background.ReadingThreads, "submit", counted)
    monkeypatch.setattr(pillow_loader, "read_with_pillow", lambda *arguments: [row])
    reading = PillowReader(Fit(), 8).read(Job(Path(str(n))) for n in range(40))
    most = 0
    for taken, _ in enumerate(reading, start=1):
        most = max(most, len(submitted) - taken)
    assert len(submitted) == 40
    assert most == ahead


@pytest.mark.parametrize("kind", ["folder", "dali"])
def test_readers_warn_of_dark_16_bit_files_once(tmp_path: Path, kind: Literal["folder", "dali"]) -> None:
    """If the files were not checked before, which would have led to a warning."""
    paths = [tmp_path / f"{n}.png" for n in range(70)]
    for path in paths:
        Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(path)
    for checked, count in ((None, 1), (check_file(paths[0]), 0)):
        lines: list[str] = []
        reader = make_reader(Choice(kind, 2, ""), Fit(), torch.device("cpu"), lines.append)
        rows = [row for _, row in reader.read(Job(path, None, checked) for path in paths)]
        assert all(isinstance(row, torch.Tensor) and row.max() == 16 for row in rows)
        assert len(lines) == count
        assert not lines or lines[0].startswith(f"warning: the brightest value of {tmp_path}")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("_forking")
def test_a_loader_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """In the main process between two reads, and while it waits for workers that hang."""
    loader = make(tmp_path, workers)
    if workers:
        monkeypatch.setattr(Source, "view", lambda *arguments: time.sleep(600))
    batches = loader.batches(0, 1000)
    loader.stopping = lambda: True
    started = time.monotonic()
    with pytest.raises(StoppedError):
        next(batches)
    assert time.monotonic() - started < 60
    assert not multiprocessing.active_children()


def test_a_reader_can_be_stopped_while_a_file_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setattr(background, "PATIENCE", 0.1)
    monkeypatch.setattr(pillow_loader, "read_with_pillow", lambda *arguments: hang.wait())
    reading = PillowReader(Fit(), 2, stopping=lambda: True).read(
        Job(path) for path in write_images(tmp_path, 9)
    )
    with pytest.raises(StoppedError):
        next(reading)
    hang.set()


@pytest.mark.usefixtures("_forking")
def test_reports_a_worker_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make(tmp_path, workers=1)

    def die(index: int, view: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Source, "view", lambda self, index, view: die(index, view))
    with pytest.raises(UserError, match="a loader process died"):
        list(loader.batches(0, 4))


def test_python_exits_while_workers_are_running(tmp_path: Path) -> None:
    """Python exits even though it waits for its workers, and they ignore the signal that it sends them."""
    make(tmp_path)
    code = (
        "import sys, torch; from pathlib import Path; from tests.conftest import both, unpaired\nfrom"
        " fastcyclegan.data.pillow_loader import FolderLoader; from fastcyclegan.data.sample_plan import"
        " Plan\na, b = unpaired(Path(sys.argv[1]))\nbatches = FolderLoader(both(a, b), Plan(1, 5, 3),"
        " torch.device('cpu'), workers=2).batches(0, 1000); next(batches)\nsys.modules['keeps'] = batches;"
        " print('end')"
    )
    root = Path(__file__).parents[2]
    finished = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        timeout=60,
        check=True,
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert finished.stdout == "end\n"


def test_reader_keeps_the_order_and_yields_errors_of_bad_files(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 20)
    paths[3].write_bytes(b"no")
    read = PillowReader(Fit("square", 8, channels=1), threads=3).read(
        Job(path, tag=n) for n, path in enumerate(paths)
    )
    rows = list(read)
    assert [job.tag for job, _ in rows] == list(range(20))
    assert isinstance(rows[3][1], BadImageError)
    assert all(row.shape == (8, 8, 1) for n, (_, row) in enumerate(rows) if n != 3)
