"""Find and check the images of a dataset: folder layouts, order, held-out images, and bad files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan import cli
from fastcyclegan.config import DataConfig
from fastcyclegan.data import scan
from fastcyclegan.data.fit import ImageRequirements
from fastcyclegan.data.scan import find_files, find_images, list_images, no_images, split_holdout
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


def test_listing_sorts_before_limiting_and_skips_hidden_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "c/z.tif", "._a.jpg", ".hidden/x.png", "notes.txt", "d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.jpeg", "b.PNG", "c/z.tif", "d.webp"]
    assert len(list_images(tmp_path, 2)) == 2


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
    for n in range(30):
        (dataset / "testA" / f"x.{n:02}").touch()
    for path in (dataset / "testA").glob("*.png"):
        path.unlink()
    found = find_files(dataset / "testA")
    assert found.counted_others().endswith(".09 (1), others (20)")
    with pytest.raises(
        UserError, match=r"no images \(looked for .*jpg, .*; found: \.00 \(1\), .*others \(20\)"
    ):
        raise no_images(found)


def test_folders_that_cannot_be_read_are_named(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tests may run as a user who can read everything, so the error is made."""
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
    with pytest.raises(UserError, match=r"neither trainA and trainB nor train/A and train/B"):
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
