"""The command line of make_aligned.py: the flags of the official script, mistakes, signals, and imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastcyclegan.command_line.make_aligned import make_aligned
from tests.conftest import write_images

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "scripts" / "make_aligned.py")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the folders A and B, which contain three pairs."""
    write_images(tmp_path / "A", 3, seed=1)
    write_images(tmp_path / "B", 3, seed=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_joins_two_folders(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_aligned(["A", "B", "out"]) == 0
    assert names(root / "out" / "train") == ["000.png", "001.png", "002.png"]
    assert capsys.readouterr().out.splitlines() == [
        "out/train: 3 pairs",
        "to train on them: python scripts/train.py --dataroot out --dataset_mode aligned",
    ]


def test_takes_the_flags_of_the_official_script(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(3):
        (root / "A" / f"00{n}.png").rename(root / "A" / f"{n}_A.png")
        (root / "B" / f"00{n}.png").rename(root / "A" / f"{n}_B.png")
    official = "--fold_A A --fold_B A --fold_AB=out --use_AB --num_imgs 2 --no_multiprocessing"
    assert make_aligned(official.split()) == 0
    assert names(root / "out" / "train") == ["0.png", "1.png"]
    out = capsys.readouterr().out
    assert out.startswith("--no_multiprocessing: no effect here, because threads join the images\n")


def test_flags_in_both_spellings(root: Path) -> None:
    write_images(root / "A", 4)
    (root / "B" / "002.png").write_text("text")
    flags = "--skip-unpaired --skip_bad-images --split val --allow-decompression-bombs"
    assert make_aligned([*flags.split(), "A", "B", "out"]) == 0
    assert make_aligned([*flags.split(), "--overwrite", "A", "B", "out"]) == 0
    assert names(root / "out" / "val") == ["000.png", "001.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "give three folders: A B OUT, or --fold_A A --fold_B B --fold_AB OUT"),
        ("A B", "give three folders: A B OUT, or --fold_A A --fold_B B --fold_AB OUT"),
        ("A B out --fold_A A", "give three folders: A B OUT, or --fold_A A --fold_B B --fold_AB OUT"),
        ("A B out more", "unknown argument more; --help lists all flags"),
        ("A B out --num_img 3", "unknown flag --num_img; --help lists all flags"),
        ("A B out --num_imgs three", "argument --num_imgs: must be an integer of at least 1, got three"),
        ("A B out --num_imgs 0", "argument --num_imgs: must be an integer of at least 1, got 0"),
        ("A B --fold_AB=", "argument --fold_AB: the value is empty"),
        ("A nowhere out", "nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line(
    root: Path, args: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_aligned(args.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not (root / "out").exists()


def test_the_help_needs_no_other_package(tmp_path: Path) -> None:
    """Without site packages, any import of one would fail."""
    command = [sys.executable, "-S", SCRIPT, "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert "--skip_unpaired" in process.stdout


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_it_and_leaves_only_whole_images(root: Path, name: str) -> None:
    """The images are made slow to write, so the signal arrives while they are written."""
    (root / "slow.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from PIL import Image\n"
        "save = Image.Image.save\n"
        "def slowly(image, path, *args, **options):\n"
        "    save(image, path, *args, **options)\n"
        "    os.write(1, b'saved\\n')\n"
        "    time.sleep(0.5)\n"
        "Image.Image.save = slowly\n"
        "from fastcyclegan.commands import make_aligned\n"
        "sys.exit(make_aligned())\n"
    )
    for folder in ("A", "B"):
        write_images(root / folder, 64)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "slow.py", "A", "B", "out"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "saved\n"
        number = getattr(signal, name)
        process.send_signal(number)
        error = process.stderr.read()
        assert process.wait(20) == 128 + number
    assert error == "stopped\n"
    written = names(root / "out" / "train")
    assert 0 < len(written) < 64
    assert all(name.endswith(".png") and not name.startswith(".") for name in written)
