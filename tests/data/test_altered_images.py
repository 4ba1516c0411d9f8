"""Tests with altered image files: every consumer agrees on which are bad, and none of them costs too much.

The consumers are the scan before training, both readers (with the results of the scan and without), the
report on a dataset, and the translation of a folder. They run in a process of their own, because a decoder
that crashes must not end the tests, and because the memory of other tests must not be measured.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image

from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.console import Console
from fastcyclegan.data.checked_files import Checked, check_file, check_files
from fastcyclegan.data.choose_loader import choose, make_reader
from fastcyclegan.data.dataset_report import ReportConfig, report_dataset
from fastcyclegan.data.fit import Fit
from fastcyclegan.data.folder_report import examine_folder
from fastcyclegan.data.image_file import BadImageError
from fastcyclegan.data.loader import Job, Row
from fastcyclegan.data.scan import list_images
from fastcyclegan.inference.outputs import plan_outputs
from fastcyclegan.inference.translate_folder import TranslateConfig, translate_folder
from fastcyclegan.nn.networks import Generator
from tests.data.altered_images import altered
from tests.data.encoded_images import originals, puzzles

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resets the peak of memory through /proc")

CPU = torch.device("cpu")
MIB = 2**20
SECONDS = 5.0
"""Maximum processor time per file. The most that Pillow decodes, 179 Mpx, takes 2.3 s; doubled."""
FILE_BYTES = 64 * MIB
"""Maximum memory per file besides its pixels: a file has at most 20 KB, and deflate expands it 1000 times."""
PIXEL_BYTES = 12
"""Maximum memory per pixel: Pillow stores 4 bytes, twice while it converts an image, and arrays have 3."""
FOLDER_BYTES = 256 * MIB
"""Maximum memory per folder besides the pixels: DALI's own buffers and threads, and the small generator."""
Kind = Literal["folder", "dali"]
KINDS: tuple[Kind, ...] = ("folder", "dali")
Names = frozenset[str]
Findings = dict[str, Names]


def declared(path: Path) -> int:
    """Return how many pixels the header of ``path`` declares, or 0 if Pillow cannot open the file."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return image.width * image.height
    except Exception:
        return 0


@contextmanager
def measured(report: Callable[[float, int], None]) -> Iterator[None]:
    """Call ``report`` with the body's processor time in seconds and the bytes by which it raised the peak."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is in use now
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report(time.process_time() - started, (peak - before) * 1024)


def costly_files(paths: list[Path]) -> Names:
    """Check each of ``paths`` alone and return those that took too long or needed too much memory."""
    costly = []
    for path in paths:
        allowed = FILE_BYTES + PIXEL_BYTES * declared(path)

        def report(seconds: float, peak: int, path: Path = path, allowed: int = allowed) -> None:
            if seconds > SECONDS or peak > allowed:
                costly.append(f"{path.name}: {seconds:.1f} s, {peak / MIB:.0f} MiB of {allowed / MIB:.0f}")

        with measured(report):
            check_file(path)
    return frozenset(costly)


def read(kind: Kind, paths: list[Path], checked: dict[Path, Checked]) -> dict[str, str]:
    """Read ``paths`` with the loader ``kind`` and return, by the names of the files, a digest of the pixels.

    It is "" for a bad file.
    """
    reader = make_reader(choose(kind, CPU, 1), Fit(), CPU, lambda text: None)
    rows = reader.read(Job(path, None, checked.get(path)) for path in paths)
    return {job.path.name: digest(row) for job, row in rows}


def digest(row: Row) -> str:
    if isinstance(row, BadImageError):
        return ""
    return f"{tuple(row.shape)} {hashlib.sha256(row.numpy().tobytes()).hexdigest()}"


def different(some: dict[str, str], others: dict[str, str]) -> Names:
    """Return the names of the images that both readers can read, but not to the same pixels."""
    pairs = {name: {some[name], others[name]} for name in some}
    return frozenset(name for name, pair in pairs.items() if len(pair) == 2 and "" not in pair)


def not_translated(folder: Path, kind: Kind) -> Names:
    """Translate ``folder`` and return the names of the images without a translation.

    Images are made small first, because a network needs much more memory for a large one than any reader.
    """
    weights = folder.parent / "latest_net_G_A.pth"
    save_weights(weights, Generator(ngf=2, n_blocks=1).state_dict())
    config = TranslateConfig(
        weights, folder, folder.parent / kind, resize=16, skip_bad_images=True, loader=kind, device="cpu"
    )
    translate_folder(config, Console())
    return frozenset(
        job.source.name for job in plan_outputs(folder, config.output).outputs if not job.target.exists()
    )


def findings(folder: Path) -> Findings:
    """Return the files that each consumer calls bad, and those that the readers read differently."""
    paths = list_images(folder)
    results = check_files(paths)
    bad: Findings = {"scan": frozenset(Path(result.path).name for result in results if result.error)}
    known = dict(zip(paths, results, strict=True))
    pixels = read("folder", paths, {})
    others = {
        "Pillow, checked": read("folder", paths, known),
        "DALI": read("dali", paths, {}),
        "DALI, checked": read("dali", paths, known),
    }
    for reader, digests in {"Pillow": pixels, **others}.items():
        bad[reader] = frozenset(name for name, value in digests.items() if not value)
    report = examine_folder("images", folder, 16, lambda count, total: None)
    bad["report"] = frozenset(Path(file.path).name for file in report.broken)
    is_clean = report_dataset(ReportConfig(folder, output=folder.parent / "page.html"), Console())
    assert is_clean == (not bad["scan"])
    for kind in KINDS:
        bad[f"translation, {kind}"] = not_translated(folder, kind)
    return bad | {"pixels": frozenset.union(*(different(pixels, other) for other in others.values()))}


def warm_up(folder: Path) -> None:
    """Load everything that the consumers need, so that only the files matter to what is measured later."""
    torch.set_num_threads(1)
    for output in (1, 2):  # what decoders, reports and progress print is not of interest
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    examine(folder, dict(altered(0, 20)))


def examine(folder: Path, files: dict[str, bytes]) -> Findings:
    """Write ``files`` to ``folder`` and return what the consumers find, and which files cost too much."""
    inside = folder / "in"
    inside.mkdir(parents=True)
    for name, data in files.items():
        (inside / name).write_bytes(data)
    paths = list_images(inside)
    costly = costly_files(paths)
    allowed = FOLDER_BYTES + PIXEL_BYTES * sum(map(declared, paths))
    over: list[str] = []

    def report(seconds: float, peak: int) -> None:
        if seconds > SECONDS * len(paths) or peak > allowed:
            over.append(f"the folder: {seconds:.1f} s, {peak / MIB:.0f} MiB of {allowed / MIB:.0f}")

    with measured(report):
        found = findings(inside)
    return found | {"costly": costly | frozenset(over)}


def check(found: Findings) -> None:
    """Check that the consumers agree with the scan, that the readers' pixels are equal, and the costs."""
    wrong = {name: found[name] for name in ("pixels", "costly")}
    for name in found.keys() - wrong.keys():
        wrong[f"{name} against the scan"] = found[name] ^ found["scan"]
    listed = [f"{name}: {', '.join(sorted(files))}" for name, files in sorted(wrong.items()) if files]
    assert not listed, "\n".join(listed)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """A process that is ready to examine files."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        pool.submit(warm_up, tmp_path_factory.mktemp("warm_up")).result()
        yield pool


def test_files_of_a_seed_do_not_depend_on_their_number() -> None:
    assert list(altered(7, 20)) == list(altered(7, 40))[:20]
    assert list(altered(7, 20)) != list(altered(8, 20))


def test_every_consumer_accepts_whole_files(process: ProcessPoolExecutor, tmp_path: Path) -> None:
    found = process.submit(examine, tmp_path, originals()).result()
    check(found)
    assert found["scan"] == frozenset()


def test_consumers_agree_on_contradictory_files(process: ProcessPoolExecutor, tmp_path: Path) -> None:
    found = process.submit(examine, tmp_path, puzzles()).result()
    check(found)


def test_consumers_agree_on_altered_files(process: ProcessPoolExecutor, tmp_path: Path) -> None:
    found = process.submit(examine, tmp_path, dict(altered(1, 250))).result()
    check(found)
    assert 60 < len(found["scan"]) < 190  # else the alterations break almost nothing, or almost everything


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 10))
def test_consumers_agree_on_thousands_of_altered_files(
    process: ProcessPoolExecutor, tmp_path: Path, seed: int
) -> None:
    check(process.submit(examine, tmp_path, dict(altered(seed, 1000))).result())
