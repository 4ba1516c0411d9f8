"""Compare DALI with Pillow, sample by sample: every mode, odd sizes and unusual files, on CPU and GPU."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fastcyclegan.config import FIXED_SIZE, Preprocess
from fastcyclegan.data import background
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.dali_loader import DaliLoader, DaliReader
from fastcyclegan.data.fit import Fit, load_pixels
from fastcyclegan.data.halves import Half
from fastcyclegan.data.image_file import BadImageError, open_image
from fastcyclegan.data.loader import Job, Source
from fastcyclegan.data.pillow_loader import FolderLoader, PillowReader
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.errors import StoppedError
from tests.conftest import both, same_batch, scene, source, unpaired, write_images
from tests.data.dali_files import MODES, SIZES, levels, varied

CPU = torch.device("cpu")
CROP = (52, 64)  # height and width
HALVES: tuple[Half, Half] = ("left", "right")


def horizontally_first(image: Image.Image, size: tuple[int, int], filter_: Image.Resampling) -> Image.Image:
    """Resize with Pillow in two steps, horizontally first.

    In a single step, Pillow can choose to resize vertically first; since version 13 it does so at some sizes.
    """
    return RESIZE(RESIZE(image, (size[0], image.height), filter_), size, filter_)


RESIZE = Image.Image.resize


@pytest.mark.parametrize("channels", [(3, 3), (1, 3), (1, 1)], ids=["colour", "gray to colour", "gray"])
@pytest.mark.parametrize("mode", MODES)
def test_two_epochs_match_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Preprocess, channels: tuple[int, int]
) -> None:
    """DALI's loader and Pillow's yield the same files, crops and flips in two epochs.

    Without a resize, the pixels are equal. With a resize, the mean difference is at most a quarter of a
    level, the cost of one rounding. No pixel differs by more than 4 levels if Pillow resizes in the same
    order of passes. The order alone changes pixels at corners between black and white by 10 levels and more.
    """
    a, b = (
        source(varied(tmp_path / side, n), Fit(mode, 72, CROP, channels[n])) for n, side in enumerate("AB")
    )
    assert_loaders_agree(a, b, 3 if mode in FIXED_SIZE else 1, mode == "crop", monkeypatch)


@pytest.mark.parametrize("mode", ["scale_width", "none"])
def test_batches_of_whole_images_match_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Preprocess
) -> None:
    """The images of a domain have one size, which the other domain does not share."""
    a, b = (
        source(equal(tmp_path / side, n, size), Fit(mode, 72, 52), batch_size=2)
        for n, (side, size) in enumerate({"A": (97, 66), "B": (64, 131)}.items())
    )
    batches = assert_loaders_agree(a, b, 2, False, monkeypatch)
    width_A, height_A = {"scale_width": (72, 52), "none": (96, 64)}[mode]
    width_B, height_B = {"scale_width": (72, 148), "none": (64, 132)}[mode]
    assert {batch.A.shape[1:] for batch in batches} == {(3, height_A, width_A)}
    assert {batch.B.shape[1:] for batch in batches} == {(3, height_B, width_B)}
    assert {len(batch.A) for batch in batches} == {1, 2}


def equal(folder: Path, seed: int, size: tuple[int, int]) -> list[Path]:
    """Write 7 images of ``size`` (width, height), as JPEG and PNG, in colour and gray, and as a WebP file."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for n in range(3):
        image = scene(rng, size)
        image.save(folder / f"{n}.jpg", quality=92)
        image.convert("RGB" if n else "L").save(folder / f"{n}.png")
    image.save(folder / "a.webp")
    return sorted(folder.iterdir())


def assert_loaders_agree(
    a: Source, b: Source, batch_size: int, is_exact: bool, monkeypatch: pytest.MonkeyPatch
) -> list[Batch]:
    """Assert that both loaders yield the same batches, within what a resize costs. Return DALI's."""
    plan = Plan(3, len(a.paths), len(b.paths), batch_size)
    stop = 2 * plan.iterations_per_epoch
    ours, pillow = (
        list(loader.batches(0, stop))
        for loader in (DaliLoader(both(a, b), plan, CPU, threads=2), FolderLoader(both(a, b), plan, CPU))
    )
    assert {path for batch in ours for path in batch.paths_A} == set(map(str, a.paths))
    for x, y in zip(ours, pillow, strict=True):
        assert (x.paths_A, x.paths_B, x.samples) == (y.paths_A, y.paths_B, y.samples)
        assert x.A.is_contiguous(memory_format=torch.channels_last)
        for one, other in zip([*x.A, *x.B], [*y.A, *y.B], strict=True):
            mean, largest = levels(one, other)
            assert mean <= 0.25
            assert not is_exact or largest == 0
    monkeypatch.setattr(Image.Image, "resize", horizontally_first)
    loaders = DaliLoader(both(a, b), plan, CPU, threads=2), FolderLoader(both(a, b), plan, CPU)
    for x, y in zip(*(loader.batches(0, plan.iterations_per_epoch) for loader in loaders), strict=True):
        assert max(levels(x.A, y.A)[1], levels(x.B, y.B)[1]) <= 4
    return ours


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evaluate Keys's cubic convolution kernel with a = -1/2, which both libraries use."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def exact_resize(
    pixels: NDArray[np.uint8], size: tuple[int, int], repeat_border: bool
) -> NDArray[np.float64]:
    """Resize [H, W, C] to (width, height) in float64, antialiased and cubic, without rounding.

    Both libraries approximate this result. At the border, Pillow and torch ignore positions outside the
    image, while DALI repeats the pixels at the border.
    """

    def weights(before: int, after: int) -> NDArray[np.float64]:
        scale = before / after
        centres = (np.arange(after) + 0.5) * scale - 0.5
        margin = int(2 * max(scale, 1)) + 2 if repeat_border else 0
        w = cubic((np.arange(-margin, before + margin)[None] - centres[:, None]) / max(scale, 1))
        w /= w.sum(1, keepdims=True)
        inside = w[:, margin : margin + before].copy()
        inside[:, 0] += w[:, :margin].sum(1)
        inside[:, -1] += w[:, margin + before :].sum(1)
        return inside

    rows, columns = weights(pixels.shape[0], size[1]), weights(pixels.shape[1], size[0])
    return np.einsum("yi,xj,ijc->yxc", rows, columns, pixels.astype(np.float64), optimize=True).clip(0, 255)


@pytest.mark.parametrize("whole", [False, True], ids=["torch resizes", "DALI resizes, as on a GPU"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_resizes_as_accurately_as_pillow(tmp_path: Path, size: tuple[int, int], whole: bool) -> None:
    """Compare DALI's and Pillow's resized images with float64, as in all parity tests of this project.

    DALI's error may be at most twice that of Pillow plus one unit. For the largest error, the unit is one
    level. For the mean error, it is a quarter of a level, which rounding the result costs on average.
    """
    path, fit = tmp_path / "x.png", Fit("square", 72)
    scene(np.random.default_rng(4), size).save(path)
    ((_, row),) = DaliReader(fit, CPU, 1, whole=whole).read([Job(path)])
    assert isinstance(row, torch.Tensor)
    before = np.asarray(open_image(path))
    ours = np.abs(row.numpy().astype(np.float64) - exact_resize(before, (72, 72), repeat_border=whole))
    pillow = np.abs(
        load_pixels(path, fit).astype(np.float64) - exact_resize(before, (72, 72), repeat_border=False)
    )
    assert ours.max() <= 2 * pillow.max() + 1
    assert ours.mean() <= 2 * pillow.mean() + 0.25


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_graph_for_gpus_crops_and_flips_as_pillow_does(
    tmp_path: Path, mode: Preprocess, channels: int
) -> None:
    """DALI's graph for GPUs, run on its CPU backend, crops and flips in the same way as Pillow.

    A crop at the wrong pixel, or a missing flip, would change the result by tens of levels.
    """
    a, b = (source(varied(tmp_path / side, n), Fit(mode, 72, CROP, channels)) for n, side in enumerate("AB"))
    plan = Plan(3, len(a.paths), len(b.paths))
    ours, pillow = (
        DaliLoader(both(a, b), plan, CPU, threads=2, whole=True),
        FolderLoader(both(a, b), plan, CPU),
    )
    for x, y in zip(ours.batches(0, len(plan)), pillow.batches(0, len(plan)), strict=True):
        for one, other in ((x.A, y.A), (x.B, y.B)):
            mean, largest = levels(one, other)
            # DALI repeats the pixels at the border and differs by more there, so only the mean has a bound.
            assert (mean, largest) == (0, 0) if mode == "crop" else mean <= 0.5


def test_reads_unchecked_files_of_all_kinds(tmp_path: Path) -> None:
    """Read files of all kinds that were not checked before.

    Their headers are read together with the files, and for broken files errors are yielded.
    """
    paths = varied(tmp_path / "in", 5)
    paths[3].write_bytes(paths[3].read_bytes()[:200])
    paths.insert(5, tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    paths.insert(7, tmp_path / "pipe.png")
    for fit in (Fit(), Fit("square", 40), Fit("square", 40, channels=1)):
        jobs = [Job(path, tag=n) for n, path in enumerate(paths)]
        ours, pillow = list(DaliReader(fit, CPU, 2).read(jobs)), list(PillowReader(fit, 2).read(jobs))
        assert [job.tag for job, _ in ours] == list(range(len(paths)))
        for (job, row), (_, other) in zip(ours, pillow, strict=True):
            if job.tag in (3, 5, 7):
                assert isinstance(row, BadImageError)
                assert str(row) == str(other)
            else:
                assert isinstance(row, torch.Tensor)
                assert isinstance(other, torch.Tensor)
                assert (row.int() - other.int()).abs().max() <= (0 if fit.preprocess == "keep" else 4)


def test_examines_sources_without_checks(tmp_path: Path) -> None:
    a, b = unpaired(tmp_path)
    bare_A, bare_B = (Source(s.paths, s.fit, {}) for s in (a, b))
    expected = list(DaliLoader(both(a, b), Plan(11, 5, 3), CPU).batches(0, 10))
    assert all(
        same_batch(x, y)
        for x, y in zip(
            expected, DaliLoader(both(bare_A, bare_B), Plan(11, 5, 3), CPU).batches(0, 10), strict=True
        )
    )


@pytest.mark.parametrize("whole", [False, True], ids=["torch resizes", "DALI resizes, as on a GPU"])
def test_reads_halves_of_unchecked_files(tmp_path: Path, whole: bool) -> None:
    """A file whose width is odd is a bad image for DALI as well."""
    (even,) = write_images(tmp_path / "even", 1, (48, 20))
    (odd,) = write_images(tmp_path / "odd", 1, (49, 20))
    jobs = [Job(path, half=half) for path in (even, odd) for half in HALVES]
    rows = [row for _, row in DaliReader(Fit(), CPU, 1, whole=whole).read(jobs)]
    for half, row in zip(HALVES, rows, strict=False):
        assert torch.equal(row, torch.from_numpy(load_pixels(even, Fit(), half=half).copy()))
    assert [str(row).split(",")[0] for row in rows[2:]] == [f"{odd}: 49x20 has an odd width"] * 2


# --- Tests on a GPU -----------------------------------------------------------------------------------------


def test_a_loader_can_be_stopped_while_a_file_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = unpaired(tmp_path)
    hang = threading.Event()
    monkeypatch.setattr(background, "PATIENCE", 0.1)
    monkeypatch.setattr(DaliReader, "_fetch", lambda self, job: hang.wait())
    loader = DaliLoader(both(a, b), Plan(3, 5, 3), CPU, threads=2)
    batches = loader.batches(0, 10)
    loader.stopping = lambda: True
    with pytest.raises(StoppedError):
        next(batches)
    hang.set()


GPU = torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_samples_match_pillow_on_a_gpu(tmp_path: Path, mode: Preprocess) -> None:
    """On a GPU, DALI's samples differ from Pillow's by no more than the decoders' standards allow.

    The inverse transform of each colour component is within 1 level of the exact result (IEEE 1180), so two
    decoders are within 2 levels of each other. After the matrix to RGB, the difference is at most 2 + 1.772 *
    2 for blue, plus 1 for roundings: 7 levels. The mean square error is at most 0.02 per decoder, so the mean
    difference, including the rounding, is below sqrt(2 * 0.02 * (1 + 1.772**2)) + 0.25 < 0.7. A cubic filter
    amplifies differences by the sum of its weights' magnitudes: at most 1.25 per pass, 1.5625 for two passes.
    The difference between the resizes themselves is added (the bound on the mean in the CPU test above). For
    lossless files, only the difference between the resizes counts.
    """
    a, b = (source(varied(tmp_path / side, n), Fit(mode, 72, CROP)) for n, side in enumerate("AB"))
    plan = Plan(3, len(a.paths), len(b.paths))
    ours, pillow = DaliLoader(both(a, b), plan, GPU, threads=4), FolderLoader(both(a, b), plan, GPU)
    for x, y in zip(ours.batches(0, 2 * len(plan)), pillow.batches(0, 2 * len(plan)), strict=True):
        assert (x.paths_A, x.samples) == (y.paths_A, y.samples)
        for one, other, path in ((x.A, y.A, x.paths_A[0]), (x.B, y.B, x.paths_B[0])):
            assert one.is_cuda
            mean, largest = levels(one, other)
            if path.endswith(".jpg"):
                assert mean <= (0.7 if mode == "crop" else 0.7 * 1.5625 + 0.5), path
                assert mode != "crop" or largest <= 7, path
            else:
                assert (mean, largest) == (0, 0) if mode == "crop" else mean <= 0.5, path


@pytest.mark.gpu
def test_image_does_not_depend_on_its_block_on_a_gpu(tmp_path: Path) -> None:
    """An image's pixels must not depend on its block: a resumed run forms different blocks."""
    a, b = (source(varied(tmp_path / side, n), Fit("resize_and_crop", 72, 64)) for n, side in enumerate("AB"))
    plan = Plan(3, len(a.paths), len(b.paths), 2)
    whole = list(DaliLoader(both(a, b), plan, GPU, threads=4).batches(0, 80))
    for start in (1, 17, 63):
        actual = list(DaliLoader(both(a, b), plan, GPU, threads=4).batches(start, 80))
        assert all(same_batch(x, y) for x, y in zip(whole[start:], actual, strict=True))


@pytest.mark.gpu
def test_slow_consumer_on_its_own_stream_sees_complete_images_on_a_gpu(tmp_path: Path) -> None:
    """Images are intact even if the consumer's stream lags behind the loader.

    No image is overwritten before the consumer has read it, or read before it is complete.
    """
    a, b = (source(varied(tmp_path / side, n), Fit("resize_and_crop", 72, 64)) for n, side in enumerate("AB"))
    plan = Plan(3, len(a.paths), len(b.paths), 4)

    def sums(batches: list[Batch]) -> torch.Tensor:
        return torch.stack([batch.A.double().sum() + 3 * batch.B.double().sum() for batch in batches])

    expected = []
    for batch in DaliLoader(both(a, b), plan, GPU, threads=4).batches(0, 120):
        expected.append(sums([batch]).cpu())
    actual = []
    with torch.cuda.stream(torch.cuda.Stream()):
        for batch in DaliLoader(both(a, b), plan, GPU, threads=4).batches(0, 120):
            torch.cuda._sleep(2_000_000)
            actual.append(sums([batch]))
        torch.cuda.current_stream().synchronize()
    assert torch.equal(torch.cat(expected), torch.cat(actual).cpu())
