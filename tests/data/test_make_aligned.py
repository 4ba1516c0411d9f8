"""Joining two folders into files of pairs: names, pixels, and everything that is refused before a write."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.console import QuietConsole
from fastcyclegan.data import make_aligned as module
from fastcyclegan.data.image_file import open_image
from fastcyclegan.data.make_aligned import make_aligned
from fastcyclegan.errors import UserError


class RecordingConsole(QuietConsole):
    """A console that keeps the lines instead of printing them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the folders A and B, which contain three pairs."""
    write(tmp_path, A="1.png 2.png sub/3.png", B="1.png 2.png sub/3.png")
    return tmp_path


def write(root: Path, size: tuple[int, int] = (6, 4), **names: str) -> None:
    """Write images of random pixels with the ``names`` given for each folder in ``root``."""
    rng = np.random.default_rng(len(names))
    for folder, files in names.items():
        for name in files.split():
            file = root / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file)


def join(root: Path, **settings: Any) -> list[str]:
    """Join A and B in ``root`` into out, and return the lines that are printed."""
    console = RecordingConsole()
    make_aligned(root / "A", root / "B", root / "out", **settings, console=console)
    return console.lines


def files(folder: Path) -> list[str]:
    """Return the paths of all files in ``folder``, including hidden ones."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def require_pair(file: Path, a: Path, b: Path) -> None:
    """Check that ``file`` holds the pixels of ``a`` and ``b``, side by side."""
    assert np.array_equal(np.asarray(Image.open(file)), np.hstack([open_image(a), open_image(b)]))


# --- Which files are written --------------------------------------------------------------------------------


def test_flat_folders_become_the_training_images(root: Path) -> None:
    written = make_aligned(str(root / "A"), str(root / "B"), str(root / "out"))
    assert written == {root / "out" / "train": 3}
    assert files(root / "out") == ["train/1.png", "train/2.png", "train/sub/3.png"]
    for name in ("1.png", "2.png", "sub/3.png"):
        require_pair(root / "out" / "train" / name, root / "A" / name, root / "B" / name)


def test_images_are_upright_and_of_eight_bits(tmp_path: Path) -> None:
    """As training reads them from their own files."""
    write(tmp_path, A="x.png", B="x.png y.png")
    deep = Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 2000)
    deep.save(tmp_path / "A" / "y.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "B" / "x.png").transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "B" / "x.png", exif=exif
    )
    assert make_aligned(tmp_path / "A", tmp_path / "B", tmp_path / "out") == {tmp_path / "out" / "train": 2}
    require_pair(tmp_path / "out" / "train" / "x.png", tmp_path / "A" / "x.png", tmp_path / "B" / "x.png")
    require_pair(tmp_path / "out" / "train" / "y.png", tmp_path / "A" / "y.tif", tmp_path / "B" / "y.png")


def test_the_folders_of_a_split_are_kept(tmp_path: Path) -> None:
    names = "train/1.png train/sub/2.png val/1.png"
    write(tmp_path, A=names, B=names)
    lines = join(tmp_path)
    assert files(tmp_path / "out") == sorted(names.split())
    assert lines[:2] == [
        f"{tmp_path}/out/train: 2 pairs",
        f"{tmp_path}/out/val: 1 pair",
    ]


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_folder_without_pairs_is_no_split(root: Path, name: str) -> None:
    (root / "B" / name).mkdir()
    join(root)
    assert files(root / "out") == ["train/1.png", "train/2.png", "train/sub/3.png"]
    assert join(root, split="val")[0] == f"{root}/out/val: 3 pairs"


def test_a_command_to_train_on_the_result_is_printed(root: Path) -> None:
    lines = join(root)
    command = f"python scripts/train.py --dataroot {root}/out --dataset_mode aligned"
    assert lines == [f"{root}/out/train: 3 pairs", f"to train on them: {command}"]
    assert join(root, split="test") == [f"{root}/out/test: 3 pairs"]  # nothing to train on


def test_names_of_files(tmp_path: Path) -> None:
    """The name is what both names have in common, and the suffix that of PNG."""
    write(
        tmp_path,
        A="a.jpg b_A.bmp c_A.png d.png e_A.png f.old.jpg",
        B="a.png b_B.bmp c.png d_B.png e_A.png f.old.png",
    )
    join(tmp_path)
    assert files(tmp_path / "out" / "train") == ["a.png", "b.png", "c.png", "d.png", "e_A.png", "f.old.png"]


def test_names_of_any_bytes(root: Path) -> None:
    names = [os.fsdecode(name) for name in (b"caf\xe9", b"two\nlines", b"-x", b"long" * 62)]
    for name in names:
        shutil.copy(root / "A" / "1.png", root / "A" / f"{name}.png")
        shutil.copy(root / "B" / "1.png", root / "B" / f"{name}.png")
    join(root)
    assert {f"train/{name}.png" for name in names} <= set(files(root / "out"))


def test_only_names_that_end_in_a_and_b(tmp_path: Path) -> None:
    """--use_AB works with a single folder, as the official script does."""
    write(tmp_path, A="1_A.png 1_B.png 2_A.png 2_B.png 3.png")
    written = make_aligned(tmp_path / "A", tmp_path / "A", tmp_path / "out", use_AB=True)
    assert written == {tmp_path / "out" / "train": 2}
    for n in "12":
        folder = tmp_path / "A"
        require_pair(tmp_path / "out" / "train" / f"{n}.png", folder / f"{n}_A.png", folder / f"{n}_B.png")
    write(tmp_path, B="1.png")
    with pytest.raises(UserError, match="/B: no image has a name that ends in _B, as --use_AB wants"):
        join(tmp_path, use_AB=True)


def test_the_first_pairs_of_each_split(tmp_path: Path) -> None:
    names = "train/1.png train/2.png train/3.png test/4.png"
    write(tmp_path, A=names, B=names)
    join(tmp_path, num_imgs=2)
    assert files(tmp_path / "out") == ["test/4.png", "train/1.png", "train/2.png"]


# --- What is refused, or left out on request ----------------------------------------------------------------


def refused(root: Path, message: str, **settings: Any) -> None:
    """Check that joining raises UserError with ``message``, and writes nothing."""
    before = files(root)
    with pytest.raises(UserError) as error:
        join(root, **settings)
    assert str(error.value) == message.replace("ROOT", str(root))
    assert files(root) == before
    assert not (root / "out").exists()


def test_images_without_a_partner(root: Path) -> None:
    write(root, A="0.png 4.png", B="5.png")
    refused(
        root,
        "ROOT/A/0.png has no partner in ROOT/B (2 of A and 1 of B have none); pass --skip_unpaired to list"
        " and leave out such images",
    )
    lines = join(root, skip_unpaired=True)
    assert lines[:3] == [
        f"left out: {root}/A/0.png has no partner in {root}/B",
        f"left out: {root}/A/4.png has no partner in {root}/B",
        f"left out: {root}/B/5.png has no partner in {root}/A",
    ]
    assert files(root / "out") == ["train/1.png", "train/2.png", "train/sub/3.png"]


def test_only_the_first_of_many_images_without_a_partner_are_listed(root: Path) -> None:
    for n in range(module.LISTED + 5):
        shutil.copy(root / "A" / "1.png", root / "A" / f"only_{n}.png")
    lines = join(root, skip_unpaired=True)
    assert lines[module.LISTED] == "and 5 more"
    assert sum(line.startswith("left out: ") for line in lines) == module.LISTED


def test_no_pair_at_all(tmp_path: Path) -> None:
    write(tmp_path, A="1.png 2.png", B="x1.png x2.png")
    message = "no two images of A and B have the same name; the first are ROOT/A/1.png and ROOT/B/x1.png"
    refused(tmp_path, message)
    refused(tmp_path, message, skip_unpaired=True)


def test_two_pairs_of_one_file(tmp_path: Path) -> None:
    write(tmp_path, A="1.png 1_A.png", B="1.png 1_B.png")
    refused(
        tmp_path,
        "two pairs would be written to ROOT/out/train/1.png: ROOT/A/1.png and ROOT/B/1.png, and"
        " ROOT/A/1_A.png and ROOT/B/1_B.png; rename the images of one of them",
    )


def test_a_pair_with_the_name_of_the_folder_of_another(tmp_path: Path) -> None:
    write(tmp_path, A="x.jpg x.png/1.png", B="x.jpg x.png/1.png")
    refused(
        tmp_path,
        "ROOT/A/x.jpg and ROOT/B/x.jpg would be written to ROOT/out/train/x.png, which would be the folder of"
        " ROOT/A/x.png/1.png and ROOT/B/x.png/1.png; rename the images of one of them",
    )


@pytest.mark.parametrize("loose", ["loose.png", "extra/9.png", "val.png"])
def test_pairs_beside_those_of_a_split(tmp_path: Path, loose: str) -> None:
    """Training would not read them."""
    write(tmp_path, A=f"train/1.png {loose}", B=f"train/1.png {loose}")
    reason = "is not in train/, val/ or test/, as other images are; move it into one of them, or out of the"
    refused(tmp_path, f"ROOT/A/{loose} {reason} dataset")
    write(tmp_path, A="zebra.png", B="zebra.png")
    refused(tmp_path, f"ROOT/A/{loose} (and 1 more) {reason} dataset")


def test_pairs_of_different_sizes(root: Path) -> None:
    write(root, size=(4, 6), B="2.png")
    reason = (
        f"the images of a pair must have equal sizes, but {root}/A/2.png has 6x4 pixels and {root}/B/2.png"
        " has 4x6"
    )
    refused(root, f"{reason}; pass --skip_bad_images to list and skip such pairs")
    assert join(root, skip_bad_images=True)[0] == f"skipped: {reason}"
    assert files(root / "out") == ["train/1.png", "train/sub/3.png"]


def test_bad_images(root: Path) -> None:
    (root / "A" / "2.png").write_text("text")
    write(root, size=(9, 9), B="1.png")  # only counted, because it is not the first
    reason = f"bad image {root}/A/2.png: not an image in one of the supported formats"
    write(root, A="1.png", B="1.png")
    refused(root, f"{reason}; pass --skip_bad_images to list and skip such pairs")
    (root / "B" / "sub" / "3.png").write_text("text")
    refused(root, f"{reason} (and 1 more); pass --skip_bad_images to list and skip such pairs")
    assert join(root, skip_bad_images=True)[0] == f"skipped: {reason}"
    assert files(root / "out") == ["train/1.png"]


def test_an_image_that_breaks_after_it_was_checked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = module.check_files

    def check_and_break(paths: Sequence[Path], *options: Any) -> Any:
        checked = check(paths, *options)
        (root / "B" / "2.png").write_text("text")
        return checked

    monkeypatch.setattr(module, "check_files", check_and_break)
    original = (root / "B" / "2.png").read_bytes()
    reason = f"{root}/B/2.png: not an image in one of the supported formats"
    with pytest.raises(UserError, match=re.escape(reason)):
        join(root)
    (root / "B" / "2.png").write_bytes(original)
    lines = join(root, skip_bad_images=True, overwrite=True)
    assert lines[:2] == [f"skipped: bad image {reason}", f"{root}/out/train: 2 pairs"]


def test_nothing_usable_is_left(tmp_path: Path) -> None:
    write(tmp_path, A="1.png", B="1.png")
    (tmp_path / "A" / "1.png").write_text("text")
    refused(tmp_path, "no pair of usable images is left", skip_bad_images=True)


def test_images_of_any_size_are_joined_on_request(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"1\.png: it has more than 20 pixels"):
        join(root)
    join(root, allow_decompression_bombs=True)
    monkeypatch.undo()
    assert len(files(root / "out")) == 3


def test_dark_images_are_warned_of(root: Path) -> None:
    Image.fromarray(np.full((4, 6), 500, np.uint16)).save(root / "B" / "2.png")
    (warning,) = (line for line in join(root) if line.startswith("warning: "))
    assert warning.startswith(f"warning: {root}/B: the brightest value of its image of 16 bits is 2")


def test_values_that_are_refused(root: Path) -> None:
    for value in (0, "2", 2.5, True):
        refused(root, f"num_imgs must be an integer of at least 1, got {value!r}", num_imgs=value)
    refused(root, "split must be one of train, val, test, got 'trial'", split="trial")
    write(root, A="train/1.png", B="train/1.png")
    refused(root, "--split val: the images are in train/, val/ or test/ already", split="val")


def test_folders_that_are_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"/nowhere: no such folder$"):
        make_aligned(root / "A", root / "nowhere", root / "out")
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="/empty: contains no images"):
        make_aligned(root / "empty", root / "B", root / "out")
    with pytest.raises(UserError, match=r"A and B are the same folder: .*/A; .* pass --use_AB$"):
        make_aligned(root / "A", root / "B" / ".." / "A", root / "out")
    assert not (root / "out").exists()


# --- Where it writes ----------------------------------------------------------------------------------------


def test_a_folder_with_files_is_only_written_to_on_request(root: Path) -> None:
    train = root / "out" / "train"
    train.mkdir(parents=True)
    (train / ".hidden").touch()
    (root / "out" / "other.txt").touch()  # not where the images go
    join(root)
    (train / "kept.png").touch()
    write(root, A="1.png", B="1.png")
    with pytest.raises(UserError, match=r"/out/train is not empty: choose .* pass --overwrite to replace"):
        join(root)
    join(root, overwrite=True)
    require_pair(train / "1.png", root / "A" / "1.png", root / "B" / "1.png")
    assert (train / "kept.png").exists()


def test_files_and_folders_in_the_way_are_found_before_a_write(root: Path) -> None:
    train = root / "out" / "train"
    (train / "2.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"/out/train/2\.png: a folder, so no image can be written there; "):
        join(root, overwrite=True)
    assert files(root / "out") == []
    (train / "2.png").rmdir()
    (train / "sub").touch()
    with pytest.raises(UserError, match=r"/out/train/sub: not a folder$"):
        join(root, overwrite=True)
    assert files(root / "out") == ["train/sub"]


def test_the_images_are_never_written_to(tmp_path: Path) -> None:
    write(tmp_path, **{"data/train": "1.png 2.png", "B": "1.png 2.png"})
    before = (tmp_path / "data" / "train" / "1.png").read_bytes()
    for output in ("data", "data/train"):
        with pytest.raises(UserError, match=r"/train would be written, but it contains .*, or is in it$"):
            make_aligned(tmp_path / "data" / "train", tmp_path / "B", tmp_path / output, overwrite=True)
    assert (tmp_path / "data" / "train" / "1.png").read_bytes() == before
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "train").touch()
    with pytest.raises(UserError, match=r"/file/train: not a folder$"):
        make_aligned(tmp_path / "data" / "train", tmp_path / "B", tmp_path / "file")


def test_a_failed_write_leaves_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files appear under their names only when they are complete, and leftovers of a killed run disappear."""
    save = Image.Image.save

    def fail(image: Image.Image, path: Path, *args: Any, **options: Any) -> None:
        save(image, path, *args, **options)
        if path.name.startswith(".2.png"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    train = root / "out" / "train"
    train.mkdir(parents=True)
    left = train / ".1.png.999999999.partial"
    left.touch()
    os.utime(left, (0, 0))
    with pytest.raises(OSError, match="No space left on device") as error:
        join(root)
    assert error.value.filename == str(train / "2.png")
    assert set(files(train)) <= {"1.png", "sub/3.png"}
