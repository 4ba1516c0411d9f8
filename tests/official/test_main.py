"""An official command with our networks and step, on a package of the official structure, against what that
does alone.
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

from fastcyclegan.official import __main__ as official
from tests.official.training import NETWORKS, SMALL, checkout

ROOT = Path(__file__).parents[2]


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


OURS = ["-m", "fastcyclegan.official"]


def command(*args: object, cwd: Path, word: str) -> tuple[str, list[Any]]:
    """Run Python with ``args``; return what it printed, and what its lines that begin with ``word`` hold."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    line = [sys.executable, *map(str, args)]
    text = subprocess.run(
        line, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    return text, [
        json.loads(line.removeprefix(word).replace("'", '"'))
        for line in text.splitlines()
        if line.startswith(f"{word} ")
    ]


def test_the_command_end_to_end(tmp_path: Path, images: Path) -> None:
    """Losses to fp32, the same files, each side's files used by the other, and a checkout that nothing was
    written into.
    """
    theirs, ours = checkout(tmp_path / "theirs"), checkout(tmp_path / "ours")
    before = tree(ours)
    often = "--n_epochs 2 --n_epochs_decay 2 --print_freq 1 --display_freq 7 --save_latest_freq 6"
    flags = f"--dataroot {images} {SMALL} --lr 0.0002 {often}".split()
    _, alone = command("train.py", *flags, cwd=theirs, word="losses")
    # From elsewhere, so that ./checkpoints is not in the checkout.
    text, together = command(
        *OURS, "--precision", "fp32", ours / "train.py", *flags, cwd=tmp_path, word="losses"
    )
    assert len(alone) == len(together) == 20
    # 3e-7 for a dozen iterations; then rounding grows, as it does between any two orders of sums.
    for n, (mine, other) in enumerate(zip(together, alone, strict=True)):
        assert mine == pytest.approx(other, rel=1e-5 if n < 10 else 0.01), n
    logged = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("fastcyclegan: ")]
    assert logged == [
        "replaced where it is the same",
        "ResnetGenerator",
        "NLayerDiscriminator",
        logged[3],
        "step",
    ]
    assert logged[3].startswith("comparing the step with ours in float64")
    assert (
        text.count(
            "visuals {'real_A': [1, 3, 32, 32], 'fake_B': [1, 3, 32, 32], 'rec_A': [1, 3, 32, 32], 'idt_B'"
        )
        == 2
    )
    folders = [where / "checkpoints" for where in (tmp_path, theirs)]
    mine_saved, other_saved = (
        {path.name: torch.load(path) for path in sorted(folder.rglob("*.pth"))} for folder in folders
    )
    assert {name: [*weights] for name, weights in mine_saved.items()} == {
        name: [*weights] for name, weights in other_saved.items()
    }
    assert all(value.is_contiguous() for weights in mine_saved.values() for value in weights.values())
    for folder in folders:
        use = (
            f"--dataroot {images} --ngf 4 --netG resnet_1blocks --model test --no_dropout --checkpoints_dir"
            f" {folder}".split()
        )
        text, mine = command(*OURS, ours / "test.py", *use, cwd=tmp_path, word="sums")
        _, other = command(theirs / "test.py", *use, cwd=tmp_path, word="sums")
        assert "ResnetGenerator: ours" in text
        assert len(mine) == 2
        assert [pytest.approx(row, abs=0.02) for row in other] == mine
    assert tree(ours) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["train.py"],
            "train.py: no such file; what is needed is the train.py or test.py of an official checkout",
        ),
        (
            ["{here}/conftest.py"],
            "is no script of an official checkout: {here}/models/networks.py does not exist",
        ),
        (
            ["{other}/train.py"],
            "is no script of an official checkout: {other}/models/networks.py has no define_G",
        ),
        (["--batch", "{good}/train.py"], "unrecognized arguments: --batch"),
        (["--precision", "fp16", "{good}/train.py"], "argument --precision: invalid choice: 'fp16'"),
        ([], "the following arguments are required: script"),
    ],
)
def test_what_cannot_be_served_is_refused_before_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    good, other = checkout(tmp_path), checkout(tmp_path / "other", [(NETWORKS, "def define_G", "def make_G")])
    places = {"here": Path(__file__).parents[1], "good": good, "other": other}
    assert official.main([arg.format(**places) for arg in args]) == 2
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
                "--compile belongs to the training step of --model cycle_gan; here the networks alone are"
                " replaced"
            ),
        ),
        ("--impl triton", "train.py", "impl='triton' needs an NVIDIA GPU, got cpu"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_it_runs(
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
    done = subprocess.run(
        [*line, *SMALL.split()[:2], *SMALL.split()[4:6]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1


def test_errors_of_the_script_are_its_own(tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "fastcyclegan.official",
        str(checkout(tmp_path) / "train.py"),
        "--dataroot",
        "x",
        "--pool",
        "3",
        "--what",
    ]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "train.py: error: unrecognized arguments: --what" in done.stderr
