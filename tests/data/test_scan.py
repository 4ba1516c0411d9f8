"""Finding and checking pictures: layouts, order, held-out parts, bad files by name, the cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastcyclegan.config import DataConfig
from fastcyclegan.data import scan
from fastcyclegan.data.image_file import ImageRequirements
from fastcyclegan.data.scan import check_files, find_pictures, list_pictures, split_holdout
from fastcyclegan.errors import UserError
from tests.conftest import write_pictures


def found(config: DataConfig, seed: int = 0) -> scan.Pictures:
    return find_pictures(config, seed, print)


def test_official_layout_and_direction(dataset: Path) -> None:
    pictures = found(DataConfig(dataroot=dataset))
    assert [len(side) for side in (pictures.train_A, pictures.train_B, pictures.test_A, pictures.test_B)] == [
        5,
        4,
        2,
        2,
    ]
    swapped = found(DataConfig(dataroot=dataset, direction="BtoA"))
    assert (swapped.train_A, swapped.test_B) == (pictures.train_B, pictures.test_A)


def test_folders_inside_folders_layout_without_test(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train" / "A", 2)
    write_pictures(tmp_path / "train" / "B", 3)
    pictures = found(DataConfig(dataroot=tmp_path))
    assert (len(pictures.train_A), len(pictures.train_B), pictures.test_A, pictures.test_B) == (2, 3, [], [])


def test_two_folders_hold_some_out_by_name_and_seed(tmp_path: Path) -> None:
    a, b = tmp_path / "photos", tmp_path / "paintings"
    write_pictures(a, 40)
    write_pictures(b, 3)
    pictures = found(DataConfig(data_A=a, data_B=b, holdout=0.25))
    assert len(pictures.train_A) + len(pictures.test_A) == 40
    assert 3 <= len(pictures.test_A) <= 20
    assert len(pictures.test_B) >= 1
    assert not set(pictures.train_A) & set(pictures.test_A)
    assert found(DataConfig(data_A=a, data_B=b, holdout=0.25)) == pictures
    assert found(DataConfig(data_A=a, data_B=b, holdout=0.25), seed=1).test_A != pictures.test_A
    write_pictures(a / "more", 5)  # a picture keeps its part when others come
    later = found(DataConfig(data_A=a, data_B=b, holdout=0.25))
    assert set(pictures.test_A) <= set(later.test_A)
    assert found(DataConfig(data_A=a, data_B=b, holdout=0)).test_A == []


def test_split_always_leaves_something_to_train_with(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path, 3)
    for share in (0.001, 0.999):
        train, held = split_holdout(paths, tmp_path, share, 0)
        assert train
        assert held
    assert split_holdout(paths[:1], tmp_path, 0.5, 0) == (paths[:1], [])


def test_listing_sorts_before_it_cuts_and_passes_over_hidden_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "c/z.tif", "._a.jpg", ".hidden/x.png", "notes.txt", "d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in list_pictures(tmp_path)]
    assert names == ["a.jpeg", "b.PNG", "c/z.tif", "d.webp"]
    assert len(list_pictures(tmp_path, 2)) == 2


def test_max_dataset_size(dataset: Path) -> None:
    pictures = found(DataConfig(dataroot=dataset, max_dataset_size=3))
    assert [path.name for path in pictures.train_A] == ["000.png", "001.png", "002.png"]


def test_missing_and_empty_folders_are_named(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        found(DataConfig(dataroot=tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"neither trainA and trainB nor train/A and train/B"):
        found(DataConfig(dataroot=tmp_path))
    with pytest.raises(UserError, match="the same folder"):
        found(DataConfig(data_A=dataset, data_B=dataset / "trainA" / ".."))
    with pytest.raises(UserError, match=r"000.png: not a folder"):
        found(DataConfig(data_A=dataset / "trainA" / "000.png", data_B=dataset))
    for path in (dataset / "trainB").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"trainB: no pictures in it"):
        found(DataConfig(dataroot=dataset))
    (dataset / "trainB").rmdir()
    with pytest.raises(UserError, match=r"trainB: no such folder"):
        found(DataConfig(dataroot=dataset))


def test_bad_pictures_are_named_or_left_out(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = dataset / "trainA" / "001.png"
    broken.write_bytes(broken.read_bytes()[:-200])
    (dataset / "testB" / "zero.jpg").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"bad picture .*trainA/001.png: .* \(and 1 more\); --skip_bad_images"
    ):
        found(DataConfig(dataroot=dataset))
    pictures = found(DataConfig(dataroot=dataset, skip_bad_images=True))
    assert broken not in pictures.train_A
    assert len(pictures.train_A) == 4
    said = capsys.readouterr().out
    assert "left out" in said
    assert "001.png" in said
    assert "zero.jpg" in said


def test_pictures_smaller_than_the_crop_are_bad(dataset: Path) -> None:
    write_pictures(dataset / "trainB" / "small", 1, size=(40, 11))
    config = DataConfig(dataroot=dataset, preprocess="crop", crop_size=16)
    with pytest.raises(UserError, match=r"small/000.png: 40x11 is smaller than the crop of 16"):
        found(config)
    found(DataConfig(dataroot=dataset, load_size=32, crop_size=16))  # resized first: fine


def test_pictures_smaller_than_the_networks_take_are_bad(dataset: Path) -> None:
    config = DataConfig(dataroot=dataset, preprocess="none")
    with pytest.raises(UserError, match="24x20 is smaller than the 24 pixels a side that the networks need"):
        find_pictures(config, 0, print, required=ImageRequirements(least_side=24))
    assert len(find_pictures(config, 0, print, required=ImageRequirements(least_side=20)).train_A) == 5


def test_a_pipe_is_no_picture(dataset: Path) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(dataset / "trainA" / "pipe.png")
    with pytest.raises(UserError, match=r"pipe.png: not a regular file"):
        found(DataConfig(dataroot=dataset))


def test_nothing_left_after_leaving_out(dataset: Path) -> None:
    for path in (dataset / "trainA").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="trainA: no usable pictures left"):
        found(DataConfig(dataroot=dataset, skip_bad_images=True))


def test_a_file_is_decoded_once_until_it_changes(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    check = scan.check_file

    def counted(path: Path) -> scan.Checked:
        decoded.append(path.name)
        return check(path)

    monkeypatch.setattr(scan, "check_file", counted)
    paths = list_pictures(dataset / "trainA")
    first = check_files(paths)
    assert check_files(paths) == first
    assert len(decoded) == 5
    assert (first[0].width, first[0].height, first[0].mode, first[0].plain) == (24, 20, "RGB", True)
    assert first[0].is_unchanged()
    write_pictures(dataset / "trainA", 1, size=(30, 20))
    assert not first[0].is_unchanged()
    assert check_files(paths)[0].width == 30
    assert len(decoded) == 6
    scan._cache_file().write_text('{"version": 2, "files": [{"path"')  # a damaged cache
    assert check_files(paths)[1] == first[1]
