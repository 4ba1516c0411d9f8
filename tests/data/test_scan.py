"""Find and check the images of a dataset: folder layouts, order, held-out images, and bad files."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.config import DataConfig
from fastcyclegan.data import scan
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.listing import find_files, list_images, no_images
from fastcyclegan.data.scan import find_images, split_holdout
from fastcyclegan.errors import UserError
from tests.conftest import write_images


def find(config: DataConfig, seed: int = 0) -> scan.Images:
    return find_images(config, seed, print)


def test_official_layout_and_direction(dataset: Path) -> None:
    images = find(DataConfig(dataroot=dataset))
    assert [len(side) for side in (images.train_A, images.train_B, images.test_A, images.test_B)] == [
        5,
        4,
        2,
        2,
    ]
    assert (images.layout, images.is_paired, images.half("A")) == ("unaligned", False, None)
    swapped = find(DataConfig(dataroot=dataset, direction="BtoA"))
    assert (swapped.train_A, swapped.test_B) == (images.train_B, images.test_A)


def test_nested_layout_without_test_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "A", 2)
    write_images(tmp_path / "train" / "B", 3)
    images = find(DataConfig(dataroot=tmp_path))
    assert (len(images.train_A), len(images.train_B), images.test_A, images.test_B) == (2, 3, [], [])


def test_holds_out_images_by_name_and_seed(tmp_path: Path) -> None:
    a, b = tmp_path / "photos", tmp_path / "paintings"
    write_images(a, 40)
    write_images(b, 3)
    images = find(DataConfig(data_A=a, data_B=b, holdout=0.25))
    assert len(images.train_A) + len(images.test_A) == 40
    assert 3 <= len(images.test_A) <= 20
    assert len(images.test_B) >= 1
    assert not set(images.train_A) & set(images.test_A)
    assert find(DataConfig(data_A=a, data_B=b, holdout=0.25)) == images
    assert find(DataConfig(data_A=a, data_B=b, holdout=0.25), seed=1).test_A != images.test_A
    write_images(a / "more", 5)  # an image stays in its part if others are added
    later = find(DataConfig(data_A=a, data_B=b, holdout=0.25))
    assert set(images.test_A) <= set(later.test_A)
    assert find(DataConfig(data_A=a, data_B=b, holdout=0)).test_A == []


def test_split_always_leaves_training_images(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 3)
    for share in (0.001, 0.999):
        train, held_out = split_holdout(paths, tmp_path, share, 0)
        assert train
        assert held_out
    assert split_holdout(paths[:1], tmp_path, 0.5, 0) == (paths[:1], [])


def test_files_that_are_no_images_are_counted(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.heic", "b.HEIC", "c/d.heic", "notes.txt", "README", ".hidden"):
        (dataset / "trainA" / name).parent.mkdir(exist_ok=True)
        (dataset / "trainA" / name).write_bytes(b"x")
    (dataset / "testB" / "Thumbs.db").write_bytes(b"x")
    find(DataConfig(dataroot=dataset))
    assert capsys.readouterr().out.splitlines() == [
        f"{dataset}/trainA: 5 files are passed over, by suffix: .heic (3), none (1), .txt (1)",
        f"{dataset}/testB: 1 file is passed over, by suffix: .db (1)",
    ]


def test_folders_that_cannot_be_read_are_named(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tests may run as a user who can read everything, so the error is made."""
    from fastcyclegan import cli

    for name in ("inner", "other"):
        (dataset / "trainA" / name).mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path).parent.name == "trainA" or not path:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(
        UserError, match=r"^the folder \S*/trainA/inner \(Permission denied\) cannot be read; pass"
    ):
        find(DataConfig(dataroot=dataset))
    find(DataConfig(dataroot=dataset, skip_bad_images=True))
    line = f"{dataset}/trainA: 2 folders cannot be read: {dataset}/trainA/inner (Permission denied)\n"
    assert capsys.readouterr().out == line
    assert cli.check_dataset([str(dataset), "--output", str(dataset / "page.html")]) == 1
    line = f"  unreadable  2 folders, the first: {dataset}/trainA/inner (Permission denied)"
    assert line in capsys.readouterr().out.splitlines()
    found = find_files(dataset / "trainA" / "inner")
    with pytest.raises(UserError, match=r"no images .*; cannot be read: .*inner \(Permission denied\)"):
        raise no_images(found)


def test_images_of_both_domains_are_named(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If the folder of one domain is inside that of the other, or a link to it."""
    inner = dataset / "trainA" / "inner"
    write_images(inner, 2, size=(24, 20), seed=9)
    config = DataConfig(data_A=dataset / "trainA", data_B=inner)
    find(config)
    line = f"warning: 2 images are in both domain A ({dataset}/trainA) and domain B ({inner})\n"
    assert capsys.readouterr().out == line
    (dataset / "trainB" / "link").symlink_to(inner)
    find(DataConfig(data_A=inner, data_B=dataset / "trainB"))
    assert capsys.readouterr().out.startswith(
        f"warning: 2 images are in both domain A ({inner}) and domain B"
    )
    find(DataConfig(data_A=inner, data_B=dataset / "testB"))
    assert capsys.readouterr().out == ""
    (dataset / "testB" / "symbolic.png").symlink_to(inner / "000.png")
    (dataset / "testB" / "hard.png").hardlink_to(inner / "000.png")
    find(DataConfig(data_A=inner, data_B=dataset / "testB"))
    assert capsys.readouterr().out.startswith("warning: 1 image is in both domain A")


def test_16_bit_files_of_few_bits_are_noted(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.arange(480, dtype=np.uint16).reshape(20, 24)
    for n, top in enumerate((4095, 2000)):
        Image.fromarray(np.minimum(values * 9, top).astype(np.uint16)).save(dataset / "trainA" / f"x{n}.png")
    find(DataConfig(dataroot=dataset))
    assert capsys.readouterr().out == (
        f"warning: {dataset}/trainA: the brightest value of its 2 images of 16 bits is 16 of 255 after"
        " scaling to 8 bits, as if the files stored 12-bit values; multiply those by 16\n"
    )
    Image.fromarray(values * 100).save(dataset / "trainA" / "bright.tif")
    find(DataConfig(dataroot=dataset))
    assert capsys.readouterr().out == ""


def test_max_dataset_size(dataset: Path) -> None:
    images = find(DataConfig(dataroot=dataset, max_dataset_size=3))
    assert [path.name for path in images.train_A] == ["000.png", "001.png", "002.png"]


def test_reports_missing_and_empty_folders(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        find(DataConfig(dataroot=tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"neither trainA and trainB, nor train/A and train/B"):
        find(DataConfig(dataroot=tmp_path))
    with pytest.raises(UserError, match="the same folder"):
        find(DataConfig(data_A=dataset, data_B=dataset / "trainA" / ".."))
    with pytest.raises(UserError, match=r"000.png: not a folder"):
        find(DataConfig(data_A=dataset / "trainA" / "000.png", data_B=dataset))
    for path in (dataset / "trainB").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"trainB: contains no images"):
        find(DataConfig(dataroot=dataset))
    (dataset / "trainB").rmdir()
    with pytest.raises(UserError, match=r"trainB: no such folder"):
        find(DataConfig(dataroot=dataset))


def test_reports_or_skips_bad_images(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = dataset / "trainA" / "001.png"
    broken.write_bytes(broken.read_bytes()[:-200])
    (dataset / "testB" / "zero.jpg").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"bad image .*trainA/001.png: .* \(and 1 more\); pass --skip_bad_images"
    ):
        find(DataConfig(dataroot=dataset))
    images = find(DataConfig(dataroot=dataset, skip_bad_images=True))
    assert broken not in images.train_A
    assert len(images.train_A) == 4
    logged = capsys.readouterr().out
    assert "skipped" in logged
    assert "001.png" in logged
    assert "zero.jpg" in logged


def test_images_smaller_than_the_crop_are_bad(dataset: Path) -> None:
    write_images(dataset / "trainB" / "small", 1, size=(40, 11))
    config = DataConfig(dataroot=dataset, preprocess="crop", crop_size=16)
    with pytest.raises(UserError, match=r"small/000.png: 40x11 is too small for a crop of 16 pixels"):
        find(config)
    # Large enough, because images are resized first.
    find(DataConfig(dataroot=dataset, load_size=32, crop_size=16))


def test_images_too_small_for_the_networks_are_bad(dataset: Path) -> None:
    config = DataConfig(dataroot=dataset, preprocess="none")
    with pytest.raises(UserError, match="24x20 is too small: the networks need at least 24 pixels per side"):
        find_images(config, 0, print, required=ImageRequirements(least_side=24))
    assert len(find_images(config, 0, print, required=ImageRequirements(least_side=20)).train_A) == 5


def test_rejects_a_pipe(dataset: Path) -> None:
    """A pipe is rejected without being read, because reading it would block forever."""
    os.mkfifo(dataset / "trainA" / "pipe.png")
    with pytest.raises(UserError, match=r"pipe.png: not a regular file"):
        find(DataConfig(dataroot=dataset))


def test_reports_a_folder_without_usable_images(dataset: Path) -> None:
    for path in (dataset / "trainA").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="trainA: contains no usable images"):
        find(DataConfig(dataroot=dataset, skip_bad_images=True))


def test_files_of_a_disk_without_numbers_are_identified_by_their_paths(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = list_images(dataset / "trainA")[:2]
    link = dataset / "link.png"
    link.symlink_to(one)
    assert scan.identity(link) == scan.identity(one) != scan.identity(other)
    status = one.stat()
    unnumbered = os.stat_result((status.st_mode, 0, *status[2:]))
    monkeypatch.setattr(Path, "stat", lambda path: unnumbered)
    assert scan.identity(link) == scan.identity(one) != scan.identity(other)


# --- Pairs and single images --------------------------------------------------------------------------------


def aligned(root: Path, **options: Any) -> DataConfig:
    return DataConfig(dataroot=root, dataset_mode="aligned", **options)


def test_pairs_side_by_side(tmp_path: Path) -> None:
    """The held-out images are those of val or, without it, of test."""
    train = write_images(tmp_path / "train", 4, (40, 20))
    images = find(aligned(tmp_path))
    assert (images.train_A, images.train_B, images.test_A, images.test_B) == (train, train, [], [])
    assert (images.layout, images.halves, images.is_paired) == ("aligned", True, True)
    assert (images.half("A"), images.half("B")) == ("left", "right")
    swapped = find(aligned(tmp_path, direction="BtoA", max_dataset_size=3))
    assert (swapped.half("A"), swapped.half("B")) == ("right", "left")
    assert swapped.train_A == swapped.train_B == train[:3]
    test = write_images(tmp_path / "test", 2, (40, 20))
    assert find(aligned(tmp_path)).test_A == test
    val = write_images(tmp_path / "val", 1, (40, 20))
    images = find(aligned(tmp_path))
    assert images.test_A == images.test_B == val
    val[0].unlink()
    assert find(aligned(tmp_path)).test_A == test
    for path in test:
        path.unlink()
    assert find(aligned(tmp_path)).test_A == []
    assert find(DataConfig(dataroot=tmp_path, dataset_mode="single")).half("A") is None


def test_pairs_side_by_side_that_cannot_be_cut_are_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sizes are those of the halves."""
    write_images(tmp_path / "train", 2, (40, 20))
    odd = write_images(tmp_path / "train" / "odd", 1, (41, 20))[0]
    narrow = write_images(tmp_path / "train" / "x", 1, (30, 20))[0]
    config = aligned(tmp_path, preprocess="crop", crop_size=16)
    with pytest.raises(UserError) as error:
        find(config)
    assert str(error.value) == (
        f"bad image {odd}: 41x20 has an odd width, so it cannot be cut into two images of equal width, A on"
        " the left and B on the right (and 1 more); pass --skip_bad_images to list and skip such images"
    )
    images = find(replace(config, skip_bad_images=True))
    assert len(images.train_A) == 2
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"skipped {narrow}: cut in halves, 15x20 is too small for a crop of 16 pixels"
    needed = ImageRequirements(least_side=20)
    odd.unlink()
    with pytest.raises(UserError, match=r"x/000.png: cut in halves, 15x20 is too small: the networks need"):
        find_images(replace(config, preprocess="none"), 0, print, required=needed)


def pair_folders(root: Path, count: int = 6) -> tuple[Path, Path]:
    """Write ``count`` pairs to ``root``/trainA as PNG and trainB as JPEG files, and return the folders."""
    write_images(root / "trainA", count, seed=1)
    write_images(root / "trainB", count, seed=2, suffix=".jpg")
    return root / "trainA", root / "trainB"


def test_pairs_of_two_folders(tmp_path: Path) -> None:
    """Either direction has the same pairs, and holds out the same ones. The limit is on pairs."""
    a, b = pair_folders(tmp_path, 20)
    (a / "000.png").rename(a / "000_A.png")
    (b / "000.jpg").rename(b / "000_B.jpg")
    config = DataConfig(data_A=a, data_B=b, holdout=0.25, dataset_mode="aligned")
    images, swapped = find(config), find(replace(config, direction="BtoA"))
    assert len(images.train_A) + len(images.test_A) == 20
    assert images.test_A
    for in_A, in_B in ((images.train_A, images.train_B), (images.test_A, images.test_B)):
        assert [path.stem.removesuffix("_A") for path in in_A] == [
            path.stem.removesuffix("_B") for path in in_B
        ]
        assert {path.parent for path in in_A} == {a}
        assert {path.parent for path in in_B} == {b}
    assert (swapped.train_A, swapped.train_B) == (images.train_B, images.train_A)
    assert (swapped.test_A, swapped.test_B) == (images.test_B, images.test_A)
    assert (images.layout, images.halves, images.half("B")) == ("aligned", False, None)
    limited = find(replace(config, max_dataset_size=3))
    assert (limited.train_A, limited.train_B) == (images.train_A[:3], images.train_B[:3])
    assert find(aligned(tmp_path)).test_A == []


@pytest.mark.parametrize("separator", ["", "/"])
def test_test_folders_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str], separator: str) -> None:
    for name, count in (("trainA", 3), ("trainB", 3), ("testA", 2)):
        write_images(tmp_path / f"{name[:-1]}{separator}{name[-1]}", count)
    assert find(aligned(tmp_path)).test_A == []
    folder = tmp_path / f"test{separator}A"
    assert capsys.readouterr().out == f"{folder}: not used, because the folder with the partners is missing\n"
    write_images(tmp_path / f"test{separator}B", 2)
    images = find(aligned(tmp_path))
    assert (
        [path.name for path in images.test_A]
        == [path.name for path in images.test_B]
        == ["000.png", "001.png"]
    )
    write_images(tmp_path / f"test{separator}B", 3)
    with pytest.raises(UserError, match=r"^1 image without a partner of the same name: 1 in \S*test\S*B,"):
        find(aligned(tmp_path))


def test_images_without_a_partner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = pair_folders(tmp_path)
    (a / "001.png").unlink()
    write_images(a / "more", 2)
    with pytest.raises(UserError) as error:
        find(aligned(tmp_path))
    lone = (
        f"3 images without a partner of the same name: 2 in {a}, the first more/000.png and 1 in {b}, the"
        " first 001.jpg"
    )
    assert str(error.value) == f"{lone}; pass --skip_bad_images to leave them out"
    images = find(aligned(tmp_path, skip_bad_images=True))
    assert len(images.train_A) == len(images.train_B) == 5
    assert capsys.readouterr().out == f"left out {lone}\n"


def test_test_images_without_any_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rule is that for some of them, and an error is not preceded by a line that claims otherwise."""
    pair_folders(tmp_path)
    write_images(tmp_path / "testA", 2)
    (tmp_path / "testB").mkdir()
    lone = f"2 images without a partner of the same name: 2 in {tmp_path}/testA, the first 000.png"
    with pytest.raises(UserError) as error:
        find(aligned(tmp_path))
    assert str(error.value) == f"{lone}; pass --skip_bad_images to leave them out"
    assert capsys.readouterr().out == ""
    assert find(aligned(tmp_path, skip_bad_images=True)).test_A == []
    assert capsys.readouterr().out == f"left out {lone}\n"


def test_two_folders_without_any_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a", write_images(tmp_path / "b" / "other", 2)[0].parents[1]
    write_images(a, 3)
    config = DataConfig(data_A=a, data_B=b, dataset_mode="aligned", skip_bad_images=True)
    with pytest.raises(
        UserError,
        match=rf"^no image of {a} has a partner of the same name in {b}; --dataset_mode unaligned trains on",
    ):
        find(config)
    with pytest.raises(UserError, match=r"; rename the images of a pair alike$"):
        find_images(config, 0, print, allowed=["aligned"])
    assert capsys.readouterr().out == ""  # nothing was left out
    for path in (b / "other").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=f"^{b}: contains no images"):
        find(config)


def test_a_bad_image_removes_its_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per bad file, one per pair of two sizes, and one with the number of pairs left out."""
    a, b = pair_folders(tmp_path)
    (a / "001.png").write_bytes(b"no")
    write_images(b / "small", 1, (8, 8), suffix=".jpg")
    write_images(a / "small", 1)
    Image.new("RGB", (20, 24)).save(b / "003.jpg")
    config = aligned(tmp_path, preprocess="crop", crop_size=16)
    with pytest.raises(UserError, match=r"^bad image \S*trainA/001.png: .* \(and 1 more\); pass --skip_"):
        find(config)
    images = find(replace(config, skip_bad_images=True))
    names = ["000", "002", "004", "005"]
    assert [path.stem for path in images.train_A] == [path.stem for path in images.train_B] == names
    made = "--preprocess crop makes them 24x20 and 20x24"
    assert capsys.readouterr().out.splitlines() == [
        f"skipped {a}/001.png: not an image in one of the supported formats",
        f"skipped {b}/small/000.jpg: 8x8 is too small for a crop of 16 pixels",
        f"skipped {a}/003.png and {b}/003.jpg: a pair needs images of one size, but {made}",
        "3 pairs are left out, because of bad images",
    ]
    for folder, name in ((a, "001"), (a, "small/000"), (b, "001"), (b, "small/000")):
        next(folder.glob(f"{name}.*")).unlink()
    with pytest.raises(UserError) as error:
        find(config)
    assert str(error.value) == (
        f"bad pair {a}/003.png and {b}/003.jpg: a pair needs images of one size, but {made}; pass"
        " --skip_bad_images to list and skip such pairs"
    )
    # A resize to one size makes them equal.
    assert len(find(aligned(tmp_path, load_size=32, crop_size=16)).train_A) == 5


def test_no_usable_pairs(tmp_path: Path) -> None:
    a, b = pair_folders(tmp_path, 2)
    (a / "000.png").write_bytes(b"no")
    (b / "001.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match="trainA: contains no usable pairs"):
        find(aligned(tmp_path, skip_bad_images=True))


def test_single_images(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "photos", 20)
    images = find(DataConfig(data=tmp_path / "photos", dataset_mode="single", holdout=0.25))
    assert sorted([*images.train_A, *images.test_A]) == paths
    assert images.test_A
    assert (images.train_B, images.test_B, images.layout, images.is_paired) == ([], [], "single", True)
    train, test = write_images(tmp_path / "D" / "train", 3), write_images(tmp_path / "D" / "test", 2)
    config = DataConfig(dataroot=tmp_path / "D", dataset_mode="single", max_dataset_size=2)
    images = find(config)
    assert (images.train_A, images.test_A) == (train[:2], test)
    train[0].write_bytes(b"no")
    assert find(replace(config, skip_bad_images=True)).train_A == train[1:2]


def test_warnings_about_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The halves of a file are not reported as one image in both domains."""
    write_images(tmp_path / "train", 2, (40, 20))
    values = np.arange(800, dtype=np.uint16).reshape(20, 40)
    Image.fromarray(values).save(tmp_path / "train" / "dark.png")
    find(aligned(tmp_path))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: {tmp_path}/train: the brightest value of its image of 16 bits is 3 of")
