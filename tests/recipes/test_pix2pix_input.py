"""Bad input for --model pix2pix is one clear line and leaves no files. Gray images reach the right domain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import cli
from fastcyclegan.data.choose_loader import choose, make_loader
from fastcyclegan.recipes.pix2pix import Pix2PixModel, Pix2PixRecipe
from fastcyclegan.settings.data import DataConfig, Direction
from tests.conftest import write_images
from tests.data.pair_files import aligned_sources

CPU = torch.device("cpu")
TINY = (
    "--model pix2pix --netG unet_32 --ngf 2 --ndf 2 --netD pixel --load_size 36 --crop_size 32 --device cpu"
    " --num_threads 0 --n_epochs 1 --n_epochs_decay 0".split()
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with datasets of several layouts."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "halves" / "train", 2, size=(80, 40))
    write_images(tmp_path / "odd" / "train", 1, size=(81, 40))
    for name in ("two", "differ"):
        write_images(tmp_path / name / "trainA", 2, size=(40, 40))
    write_images(tmp_path / "two" / "trainB", 2, size=(40, 40), seed=1)
    write_images(tmp_path / "differ" / "trainB", 2, size=(72, 40), seed=1)
    write_images(tmp_path / "unaligned" / "trainA", 2, size=(40, 40))
    write_images(tmp_path / "unaligned" / "trainB", 2, size=(40, 40), suffix="_b.png")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run train.py, which must fail with one line, and return that line."""
    capsys.readouterr()
    assert cli.train(list(args)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--dataroot halves --netG unet_256 --load_size 143 --crop_size 128",
            "crop_size 128 is not a multiple of 256: unet_256 would return images of a different size; --netG"
            " unet_128 fits",
        ),
        ("--dataroot halves --netG unet_256 --load_size 48 --crop_size 40", "no U-Net fits"),
        (
            "--dataroot halves --netG unet_48",
            "unet_N where N is a power of two from 32 to 4096, got 'unet_48'",
        ),
        (
            "--dataroot unaligned",
            "unaligned contains trainA and trainB, two domains (unaligned) without a pair of images of the"
            " same name, but this run needs pairs",
        ),
        (
            "--dataroot halves/train",
            "halves/train contains images and no folder train, but this run needs pairs",
        ),
        ("--dataroot odd", "bad image odd/train/000.png: 81x40 has an odd width"),
        (
            "--dataroot differ --preprocess none",
            "bad pair differ/trainA/000.png and differ/trainB/000.png: a pair needs images of one size, but"
            " --preprocess none makes them 32x32 and 64x32",
        ),
        ("--dataroot halves --input_nc 4", "input_nc is 4, but images from files have 3 channels"),
        (
            "--dataroot halves --use_dropout --no_dropout",
            "--use_dropout and --no_dropout contradict each other",
        ),
        (
            "--dataroot two --dataset_mode unaligned",
            "--model pix2pix cannot train on images in the layout unaligned",
        ),
        ("--dataroot halves --lambda_identity 0", "--lambda_identity is a flag of --model cycle_gan"),
        ("--dataroot halves --lambda_L1 -1", "lambda_L1 must be at least 0, got -1.0"),
        ("--data_B two/trainB", "--data_A and --data_B must be given together"),
        ("--data_A two/trainA --data_B two/trainA", "--data_A and --data_B are the same folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_files(
    here: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert message in refused(capsys, *TINY, *flags.split())
    assert not (here / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--norm instance", "norm was batch and cannot change to instance in the middle of a run"),
        ("--netG unet_64 --crop_size 64 --load_size 64", "netG was unet_32 and cannot change to unet_64"),
        ("--direction BtoA", "direction was AtoB and cannot change to BtoA in the middle of a run"),
        ("--output_nc 1", "output_nc was 3 and cannot change to 1 in the middle of a run"),
        ("--crop_size 48 --load_size 48", "crop_size 48 is not a multiple of 32"),
        ("--dataset_mode unaligned", "--model pix2pix cannot train on images in the layout unaligned"),
        (
            "--model cycle_gan",
            "is a run of --model pix2pix, which cannot be continued with --model cycle_gan",
        ),
    ],
)
def test_a_resumed_run_keeps_what_its_networks_need(
    here: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    assert cli.train([*TINY, "--dataroot", "halves", "--name", "r"]) == 0
    files = {path: path.read_bytes() for path in (here / "checkpoints" / "r").rglob("*") if path.is_file()}
    more = ["--continue_train", "--name", "r", "--n_epochs", "2"]
    assert message in refused(capsys, *more, *flags.split())
    assert files == {
        path: path.read_bytes() for path in (here / "checkpoints" / "r").rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
@pytest.mark.parametrize(("loader", "threads"), [("folder", 0), ("dali", 1)])
def test_the_gray_domain_is_the_input_in_either_direction(
    tmp_path: Path, loader: str, threads: int, direction: Direction
) -> None:
    """--input_nc is the number of channels of what the generator takes, as in the official code: with BtoA,
    that is the right half.
    """
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    left, right = (np.full((40, 40, 3), colour, np.uint8) for colour in ((200, 20, 90), (10, 120, 250)))
    (tmp_path / "train").mkdir()
    Image.fromarray(np.concatenate([left, right], 1)).save(tmp_path / "train" / "0.png")
    data = DataConfig(
        dataroot=tmp_path, dataset_mode="aligned", direction=direction, load_size=36, crop_size=32
    )
    recipe = Pix2PixRecipe(model=Pix2PixModel(input_nc=1))
    sources, plan = aligned_sources(tmp_path, data, recipe.requirements.channels)
    made = make_loader(choose(loader, CPU, threads), sources, plan, CPU, data, print)
    batch = next(iter(made.batches(0, 1)))
    source, target = (left, right) if direction == "AtoB" else (right, left)
    gray = np.asarray(Image.fromarray(source).convert("L"))[0, 0]
    for images, levels in ((batch.A, [gray]), (batch.B, target[0, 0])):
        wanted = torch.tensor(levels).view(1, -1, 1, 1).expand(1, -1, 32, 32) / 127.5 - 1
        assert torch.allclose(images, wanted, atol=1.01 / 127.5)


def test_gray_to_colour_trains(here: Path) -> None:
    flags = "--dataroot halves --input_nc 1 --direction BtoA --name gray".split()
    assert cli.train([*TINY, *flags]) == 0
