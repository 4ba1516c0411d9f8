"""Runs on images that are not square: crops, and whole images of one size per domain in batches."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastcyclegan.cli import parse_train
from fastcyclegan.data import dali_loader
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training import start as start_module
from fastcyclegan.training.disk import disk_needed
from fastcyclegan.training.start import start
from fastcyclegan.training.trainer import Trainer
from tests.commands import fails
from tests.conftest import write_images
from tests.training.runs import arguments, assert_same_state, run

WHOLE = "--preprocess none --batch_size 2 --ema 0.9".split()
CROPPED = "--load_size 28 --crop_size 16 24 --batch_size 2 --ema 0.9".split()


@pytest.fixture
def whole_images(tmp_path: Path) -> Path:
    """A dataset whose images have one size per domain; the held-out images of A are larger."""
    root = tmp_path / "images"
    write_images(root / "trainA", 5, (24, 16), seed=1)
    write_images(root / "trainB", 3, (20, 32), seed=2)
    write_images(root / "testA", 2, (40, 16), seed=3)
    write_images(root / "testB", 2, (20, 32), seed=4)
    return root


@pytest.mark.parametrize(
    ("flags", "size_A", "size_B"),
    [
        ([*WHOLE, "--micro_batch", "1"], (16, 24), (32, 20)),
        ([*WHOLE[2:], "--preprocess", "scale_width"], (16, 20), (32, 20)),
        (CROPPED, (16, 24), (16, 24)),
    ],
    ids=["whole, in parts", "scaled", "cropped"],
)
def test_a_resumed_run_equals_one_that_never_stopped(
    whole_images: Path, tmp_path: Path, flags: list[str], size_A: tuple[int, int], size_B: tuple[int, int]
) -> None:
    """The third batch has one image instead of two, and the pools of 3 images are full by then."""
    run(whole_images, tmp_path, "whole", *flags, "--max_iters", "4")
    run(whole_images, tmp_path, "parts", *flags, "--max_iters", "2")
    run(whole_images, tmp_path, "parts", *flags, "--continue_train", "--max_iters", "4")
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    pools = load_tensors(tmp_path / "whole" / "state.pt")["recipe"]
    assert pools["A"]["slots"].shape == (3, 3, *size_B)  # made from images of B
    assert pools["B"]["slots"].shape == (3, 3, *size_A)


def test_images_of_several_sizes_are_named_before_anything_is_written(
    whole_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(whole_images / "trainB" / "more", 1, (24, 32))
    runs = tmp_path / "runs"
    common = ("--dataroot", str(whole_images), "--checkpoints_dir", str(runs), "--preprocess", "none")
    error = fails(capsys, *common, "--batch_size", "2")
    folder = whole_images / "trainB"
    assert f"{folder / '000.png'} is 20x32 and {folder / 'more' / '000.png'} is 24x32: remove" in error
    assert not runs.exists()
    assert run(whole_images, runs, "r", "--preprocess", "none", "--max_iters", "2").run.iteration == 2


@pytest.mark.parametrize("loader", ["folder", "dali"])
def test_an_image_that_gets_another_size_ends_the_run_without_losing_it(
    whole_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    image = whole_images / "trainA" / "002.png"
    content, stat = image.read_bytes(), image.stat()
    after_step = Trainer._after_step

    def replaced(self: Trainer, epoch: int, images: int) -> None:
        after_step(self, epoch, images)
        Image.new("RGB", (40, 40)).save(image)

    monkeypatch.setattr(dali_loader, "BLOCK", 4)  # so that not all files are read before this one is replaced
    more = (*WHOLE, "--loader", loader, "--max_iters", "20")
    run(whole_images, tmp_path, "whole", *more)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_after_step", replaced)
        with pytest.raises(UserError) as caught:
            run(whole_images, tmp_path, "broken", *more)
    saved = load_tensors(tmp_path / "broken" / "state.pt")["iteration"]
    assert 0 < saved < 20
    assert str(caught.value).startswith(
        f"bad image {image}: --preprocess none makes it 40x40 now, but all images of a batch must be 24x16;"
    )
    assert f"(saved after iteration {saved}; " in str(caught.value)
    resumed = run(
        whole_images,
        tmp_path,
        "broken",
        "--continue_train",
        "--max_iters",
        str(saved + 4),
        "--skip_bad_images",
    )
    assert resumed.run.iteration == saved + 4  # the advice of the message
    shutil.rmtree(tmp_path / "broken")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_after_step", replaced)
        image.write_bytes(content)
        with pytest.raises(UserError):
            run(whole_images, tmp_path, "broken", *more)
    image.write_bytes(content)
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    run(whole_images, tmp_path, "broken", "--continue_train")
    assert_same_state(tmp_path / "whole", tmp_path / "broken")


def test_the_images_of_a_run_must_keep_their_size(whole_images: Path, tmp_path: Path) -> None:
    run(whole_images, tmp_path, "r", *CROPPED, "--max_iters", "2")
    with pytest.raises(UserError, match="crop_size was 16 24 and cannot change to 24 16 in the middle of a"):
        run(whole_images, tmp_path, "r", "--continue_train", *CROPPED[:2], "--crop_size", "24", "16")
    scaled = "--preprocess scale_width --batch_size 2 --max_iters 2".split()
    run(whole_images, tmp_path, "s", *scaled)
    with pytest.raises(UserError, match="load_size was 20 and cannot change to 40 in the middle of a run"):
        run(whole_images, tmp_path, "s", "--continue_train", "--load_size", "40")


def test_the_disk_space_of_whole_images_is_known(whole_images: Path, tmp_path: Path) -> None:
    """Grids have space for the held-out images, which may have other sizes."""

    def need(*flags: str) -> tuple[int, int, bool]:
        started = start(parse_train(arguments(whole_images, tmp_path, "r", *flags)), print)
        needed = disk_needed(started)
        started.release()
        shutil.rmtree(tmp_path / "r")
        return needed.state, needed.samples, needed.complete

    state, samples, complete = need(*WHOLE)
    state_of_crops, samples_of_crops, _ = need(*CROPPED)
    pixels = 16 * 24 + 32 * 20
    assert state - state_of_crops == 3 * 3 * 3 * 4 * (pixels - 2 * 16 * 24)
    assert samples > samples_of_crops
    assert complete


@pytest.mark.parametrize("impl", ["auto", "cpp"])
def test_a_run_at_96x160_on_the_kernels(tmp_path: Path, impl: str) -> None:
    for folder in ("trainA", "trainB"):
        write_images(tmp_path / "images" / folder, 2, (160, 96))
    flags = f"--preprocess none --batch_size 2 --impl {impl} --max_iters 2".split()
    trained = run(tmp_path / "images", tmp_path, "r", *flags)
    state = trained.run.engine.state_dict()
    assert state["recipe"]["A"]["slots"].shape == (3, 3, 96, 160)
    assert all(torch.isfinite(t).all() for net in state["nets"].values() for t in net.values())


@pytest.mark.parametrize(
    ("flags", "is_fixed"),
    [
        (("--crop_size", "16", "20"), True),
        (("--preprocess", "none"), False),
        (("--preprocess", "none", "--batch_size", "2"), True),
    ],
    ids=str,
)
def test_the_engine_knows_whether_images_have_one_size(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], is_fixed: bool
) -> None:
    engine, given = start_module.Engine, []

    def recorded(*args: Any, fixed_sizes: bool, **options: Any) -> Any:
        given.append(fixed_sizes)
        return engine(*args, fixed_sizes=fixed_sizes, **options)

    monkeypatch.setattr(start_module, "Engine", recorded)
    start(parse_train(arguments(dataset, tmp_path, "r", *flags)), print)
    assert given == [is_fixed]
