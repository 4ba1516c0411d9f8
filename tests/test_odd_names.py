"""File names that are not UTF-8, that a terminal would act on or cannot show, and that are as long as may be.

Every command must work with them and print something readable.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from fastcyclegan import cli
from fastcyclegan.checkpoints.run_files import read_config, save_weights
from fastcyclegan.data.scan import fingerprint, split_holdout
from fastcyclegan.nn.networks import Generator

NAMES = [b"caf\xe9.png", "写真 é.png".encode(), b"two\nlines.png", b"\x1b[2Jcleared.png", b":smile:.png"]
NAMES.append(b"long" + b"x" * 247 + b".png")
SMALL = (
    "--ngf 4 --ndf 4 --netG resnet_1blocks --crop_size 32 --load_size 36 --device cpu --loader folder".split()
)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A dataset with odd names in a folder with an odd name, and weights beside it."""
    root = tmp_path / os.fsdecode(b"donn\xe9es") / "a\nb"
    for part in ("trainA", "trainB", "testA"):
        for n, name in enumerate(NAMES):
            (root / part).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (18, 18), (40 * n, 0, 99)).save(root / part / os.fsdecode(name), "PNG")
    save_weights(tmp_path / "latest_net_G_A.pth", Generator(ngf=4, n_blocks=1).state_dict())
    return root


def commands(root: Path) -> list[list[str]]:
    """Return the arguments of the commands, each after the name of its function in cli."""
    weights = str(root.parents[1] / "latest_net_G_A.pth")
    run = ["--name", "run", "--checkpoints_dir", str(root / "runs")]
    return [
        ["train", "--dataroot", str(root), *run, *SMALL, "--max_iters", "2"],
        ["train", "--continue_train", *run, "--max_iters", "3"],
        ["check_dataset", str(root), "--output", str(root / "page.html")],
        ["translate", "--weights", weights, "--input", str(root / "trainA"), "--output", str(root / "out")],
    ]


def checked_output(root: Path, lines: Sequence[str]) -> None:
    """Check what the commands wrote: escapes, no line that a name made, and one translation per image."""
    text = "\n".join(lines)
    assert "Traceback" not in text
    assert "\x1b[2J" not in text
    assert r"donn\xe9es" in text
    assert r"a\nb" in text
    assert len(list((root / "out").iterdir())) == len(NAMES)
    page = (root / "page.html").read_text(encoding="utf-8")
    assert r"caf\xe9.png" in page
    assert r"two\nlines.png" in page
    assert (root / "runs" / "run" / "index.html").read_text(encoding="utf-8")
    config = read_config(root / "runs" / "run")
    assert config is not None
    assert config.data.dataroot == root.resolve()


def test_every_command_works_with_odd_names(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for function, *arguments in commands(odd):
        assert getattr(cli, function)(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    checked_output(odd, shown.out.splitlines())


@pytest.mark.parametrize(
    ("encoding", "settings"),
    [
        ("ascii", {"PYTHONIOENCODING": "ascii"}),
        ("ascii", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
    ids=["an ASCII terminal", "the C locale"],
)
def test_every_command_prints_to_any_terminal(odd: Path, encoding: str, settings: dict[str, str]) -> None:
    code = "import sys; from fastcyclegan import cli\n"
    for function, *arguments in commands(odd):
        code += f"assert cli.{function}({arguments!a}) == 0\n"
    code += f"cli.check_dataset([{str(odd / os.fsdecode(bytes([103, 233])))!a}])\n"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHON"))
    }
    ended = subprocess.run(
        [sys.executable, "-c", code], env={**environment, **settings}, capture_output=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stderr.decode("ascii").splitlines()[-1].startswith("error: ")
    checked_output(odd, ended.stdout.decode(encoding).splitlines())


@pytest.mark.parametrize("arguments", [["--help"], ["--no_such_flag"], ["--dataroot", "写真"]])
def test_help_and_errors_print_to_any_terminal(arguments: list[str]) -> None:
    code = f"import sys; sys.argv = ['train', *{arguments!a}]\n"
    code += "from fastcyclegan.commands import train; sys.exit(train())"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=100)
    assert ended.returncode == (0 if arguments == ["--help"] else 2)
    text = (ended.stdout + ended.stderr).decode("ascii")
    assert text
    assert "Traceback" not in text


def test_valid_names_keep_their_hashes(tmp_path: Path) -> None:
    """The held-out images, and what a resumed run compares, are those of earlier versions."""
    paths = [tmp_path / f"bild é {n}.png" for n in range(20)]
    assert fingerprint(paths) == "a09a07c04ac00ad2"
    train, held_out = split_holdout(paths, tmp_path, 0.2, 3)
    assert [path.name for path in held_out] == [f"bild é {n}.png" for n in (1, 4, 10, 13)]
    assert len(train) == 16
