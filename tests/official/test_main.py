"""Run ``python -m fastcyclegan.official`` end to end, and compare it with running the same scripts directly.

The scripts are those of a fake checkout, which has the structure of the official code.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcyclegan.official import __main__ as official_main
from tests.official.training import NETWORKS, SMALL, checkout

ROOT = Path(__file__).parents[2]


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


OURS = ["-m", "fastcyclegan.official"]


def command(*args: object, cwd: Path, prefix: str) -> tuple[str, list[Any]]:
    """Run Python with ``args``. Return its output, and the values in the lines that begin with ``prefix``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    line = [sys.executable, *map(str, args)]
    text = subprocess.run(
        line, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    return text, [
        json.loads(line.removeprefix(prefix).replace("'", '"'))
        for line in text.splitlines()
        if line.startswith(f"{prefix} ")
    ]


def test_the_command_end_to_end(tmp_path: Path, images: Path) -> None:
    """Train and translate with the command and with the checkout alone, and compare the two.

    The losses agree to fp32 rounding, both write the same files, and each can load the weights of the other.
    Nothing is written into the checkout.
    """
    official, ours = checkout(tmp_path / "official"), checkout(tmp_path / "ours")
    before = file_hashes(ours)
    schedule = "--n_epochs 2 --n_epochs_decay 2 --print_freq 1 --display_freq 7 --save_latest_freq 6"
    flags = f"--dataroot {images} {SMALL} --lr 0.0002 {schedule}".split()
    _, official_losses = command("train.py", *flags, cwd=official, prefix="losses")
    # Run from another folder, so that ./checkpoints is not inside the checkout.
    text, our_losses = command(
        *OURS, "--precision", "fp32", ours / "train.py", *flags, cwd=tmp_path, prefix="losses"
    )
    assert len(official_losses) == len(our_losses) == 20
    # The difference is 3e-7 for a dozen iterations. After that, rounding errors grow, as they do whenever
    # sums are computed in another order.
    for n, (row, official_row) in enumerate(zip(our_losses, official_losses, strict=True)):
        assert row == pytest.approx(official_row, rel=1e-5 if n < 10 else 0.01), n
    logged = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("fastcyclegan: ")]
    assert logged == [
        "networks to be replaced if fastcyclegan's give the same outputs",
        "ResnetGenerator",
        "NLayerDiscriminator",
        logged[3],
        "training step",
    ]
    assert logged[3].startswith("comparing the checkout's training step with fastcyclegan's in float64")
    assert (
        text.count(
            "visuals {'real_A': [1, 3, 32, 32], 'fake_B': [1, 3, 32, 32], 'rec_A': [1, 3, 32, 32], 'idt_B'"
        )
        == 2
    )
    folders = [parent / "checkpoints" for parent in (tmp_path, official)]
    our_files, official_files = (
        {path.name: torch.load(path) for path in sorted(folder.rglob("*.pth"))} for folder in folders
    )
    assert {name: [*weights] for name, weights in our_files.items()} == {
        name: [*weights] for name, weights in official_files.items()
    }
    assert all(value.is_contiguous() for weights in our_files.values() for value in weights.values())
    for folder in folders:
        arguments = (
            f"--dataroot {images}/testA --ngf 4 --netG resnet_1blocks --model test --model_suffix _A"
            f" --no_dropout --checkpoints_dir {folder}".split()
        )
        text, our_sums = command(*OURS, ours / "test.py", *arguments, cwd=tmp_path, prefix="sums")
        _, official_sums = command(official / "test.py", *arguments, cwd=tmp_path, prefix="sums")
        assert "ResnetGenerator: replaced by fastcyclegan's" in text
        assert len(our_sums) == 2
        assert [pytest.approx(row, abs=0.02) for row in official_sums] == our_sums
    assert file_hashes(ours) == before


@pytest.mark.slow
def test_pix2pix_end_to_end(tmp_path: Path, pairs: Path) -> None:
    """Train and test with the command and with the checkout alone, and compare the two."""
    folder, small = checkout(tmp_path), "--ngf 4 --ndf 4 --netG unet_64 --n_epochs 1 --n_epochs_decay 0"
    flags = f"--dataroot {pairs} --model pix2pix {small} --print_freq 1".split()
    text, losses = command(*OURS, folder / "train.py", *flags, cwd=tmp_path, prefix="losses")
    assert "UnetGenerator: replaced by fastcyclegan's" in text
    assert "training step: not replaced: fastcyclegan's is for CycleGANModel, not Pix2PixModel" in text
    _, official_losses = command(folder / "train.py", *flags, "--name", "own", cwd=tmp_path, prefix="losses")
    assert [pytest.approx(row, rel=1e-3) for row in official_losses] == losses
    flags = f"--dataroot {pairs / 'test'} --model test --netG unet_64 --norm batch --ngf 4".split()
    text, our_sums = command(*OURS, folder / "test.py", *flags, cwd=tmp_path, prefix="sums")
    _, official_sums = command(folder / "test.py", *flags, cwd=tmp_path, prefix="sums")
    assert "UnetGenerator: replaced by fastcyclegan's" in text
    assert len(our_sums) == 2
    assert [pytest.approx(row, abs=0.02) for row in official_sums] == our_sums


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["train.py"],
            "train.py: no such file; give the train.py or test.py of an official checkout",
        ),
        (
            ["{here}/conftest.py"],
            "does not belong to an official checkout: {here}/models/networks.py does not exist",
        ),
        (
            ["{other}/train.py"],
            "does not belong to an official checkout: {other}/models/networks.py has no define_G",
        ),
        (["--batch", "{good}/train.py"], "unrecognized arguments: --batch"),
        (["--precision", "fp16", "{good}/train.py"], "argument --precision: invalid choice: 'fp16'"),
        ([], "the following arguments are required: script"),
    ],
)
def test_mistakes_are_reported_before_the_script_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    good, other = checkout(tmp_path), checkout(tmp_path / "other", [(NETWORKS, "def define_G", "def make_G")])
    places = {"here": Path(__file__).parents[1], "good": good, "other": other}
    assert official_main.main([arg.format(**places) for arg in args]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message.format(**places) in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "script", "message"),
    [
        (
            "--compile",
            "test.py",
            (
                "--compile applies only to the training step of --model cycle_gan; for this model, only"
                " networks are replaced"
            ),
        ),
        ("--impl triton", "train.py", "impl='triton' needs an NVIDIA GPU, got cpu"),
    ],
)
def test_flags_that_the_model_does_not_support_are_rejected_before_it_runs(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, flags: str, script: str, message: str
) -> None:
    line = [
        sys.executable,
        "-m",
        "fastcyclegan.official",
        *flags.split(),
        str(checkout(tmp_path) / script),
        "--dataroot",
        str(images),
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        "PYTHONPATH": str(ROOT),
    }
    process = subprocess.run(
        [*line, *SMALL.split()[:2], *SMALL.split()[4:6]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith(f"error: {message}")
    assert len(process.stderr.splitlines()) == 1


def test_errors_of_the_script_pass_through_unchanged(tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "fastcyclegan.official",
        str(checkout(tmp_path) / "train.py"),
        "--dataroot",
        "x",
        "--pool",
        "3",
        "--unknown",
    ]
    process = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "train.py: error: unrecognized arguments: --unknown" in process.stderr
