"""Tests of translating folders: any image size, output names, equal results in any batch, invalid inputs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.console import Console
from fastcyclegan.errors import UserError
from fastcyclegan.inference.translate_folder import TranslateConfig, plan_outputs, translate_folder
from fastcyclegan.nn.networks import Generator, UnetGenerator
from tests.conftest import write_images


def run(weights: Path, source: Path, output: Path, **options: object) -> int:
    return translate_folder(TranslateConfig(weights, source, output, device="cpu", **options), Console())


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (17, 9), (64, 64), (101, 7)])
def test_images_keep_their_size(weights: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    write_images(tmp_path / "in", 1, size=size)
    run(weights, tmp_path / "in", tmp_path / "out")
    with Image.open(tmp_path / "out" / "000.png") as image:
        assert image.size == size


@pytest.mark.parametrize("loader", ["folder", "dali"])
def test_batch_size_and_loader_do_not_change_the_result(weights: Path, tmp_path: Path, loader: str) -> None:
    """Results agree to one gray level. No image is resized, so both loaders return the same pixels."""
    folder = tmp_path / "in"
    for n, size in enumerate([(16, 16), (20, 12), (13, 13), (24, 24)]):
        write_images(folder / str(n), 3, size=size, seed=n, suffix=".jpg" if n % 2 else ".png")
    assert run(weights, folder, tmp_path / "one", batch_size=1, loader="folder") == 12
    assert run(weights, folder, tmp_path / "many", batch_size=5, loader=loader) == 12
    singles = sorted((tmp_path / "one").rglob("*.png"))
    assert len(singles) == 12
    for path in singles:
        other = tmp_path / "many" / path.relative_to(tmp_path / "one")
        difference = np.asarray(Image.open(path)).astype(int) - np.asarray(Image.open(other)).astype(int)
        assert np.abs(difference).max() <= 1


def test_names_are_kept_and_never_collide(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a.jpg", "a.png", "b.tif", "deep/c.webp", "before_after.bmp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    run(weights, folder, tmp_path / "out", grid=True)
    names = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert names == {
        "a.jpg.png",
        "a.png.png",
        "b.png",
        "deep/c.png",
        "before_after.bmp.png",
        "before_after.png",
    }
    run(weights, folder / "b.tif", tmp_path / "single")
    assert [path.name for path in (tmp_path / "single").iterdir()] == ["b.png"]


def test_inputs_are_never_overwritten(weights: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    with pytest.raises(UserError, match="is one of the input images: choose another --output"):
        plan_outputs(TranslateConfig(weights, tmp_path / "in", tmp_path / "in"))


def test_translations_inside_the_input_folder_are_not_translated_again(weights: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2)
    for _ in range(2):
        assert run(weights, tmp_path / "in", tmp_path / "in" / "out") == 2
    with pytest.raises(UserError, match=r"000.png: not a folder, so no images can be written to it"):
        run(weights, tmp_path / "in", tmp_path / "in" / "000.png")


def test_resize_option(weights: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "in", 2, size=(50, 30))
    run(weights, tmp_path / "in", tmp_path / "out", resize=16)
    assert Image.open(tmp_path / "out" / "000.png").size == (16, 16)


def test_networks_with_one_channel_write_gray_images(tmp_path: Path) -> None:
    save_weights(tmp_path / "g.pth", Generator(1, 1, ngf=2, n_blocks=0).state_dict())
    write_images(tmp_path / "in", 1)
    run(tmp_path / "g.pth", tmp_path / "in", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "000.png").mode == "L"


def test_unets_pad_to_their_own_multiple(tmp_path: Path) -> None:
    save_weights(tmp_path / "u.pth", UnetGenerator(ngf=1, num_downs=5).state_dict())
    write_images(tmp_path / "in", 1, size=(70, 33))
    run(tmp_path / "u.pth", tmp_path / "in", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "000.png").size == (70, 33)


@pytest.mark.parametrize("loader", ["folder", "dali"])
def test_bad_images_are_reported_or_skipped(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loader: str
) -> None:
    paths = write_images(tmp_path / "in", 4)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    with pytest.raises(UserError, match=r"bad image .*001.png: .*--skip_bad_images"):
        run(weights, tmp_path / "in", tmp_path / "out", loader=loader)
    assert run(weights, tmp_path / "in", tmp_path / "out", skip_bad_images=True, loader=loader) == 3
    assert "skipped" in capsys.readouterr().out


def test_dali_is_only_loaded_for_many_images(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "few", 2)
    run(weights, tmp_path / "few", tmp_path / "out")
    assert "using the folder loader" in capsys.readouterr().out
    write_images(tmp_path / "many", 64, size=(8, 8))
    run(weights, tmp_path / "many", tmp_path / "out2")
    assert "using the dali loader" in capsys.readouterr().out


def test_half_written_files_of_a_killed_process_are_removed(weights: Path, tmp_path: Path) -> None:
    """They are kept if their process may still be writing them."""
    write_images(tmp_path / "in" / "deep", 1)
    folder = tmp_path / "out" / "deep"
    folder.mkdir(parents=True)
    old, new = (folder / f".{name}.png.{2**22 + 1}.partial" for name in ("old", "new"))
    mine = folder / f".old.png.{os.getpid()}.partial"
    for file in (old, new, mine):
        file.touch()
    for file in (old, mine):
        os.utime(file, (0, 0))
    run(weights, tmp_path / "in", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"000.png", new.name, mine.name}


def test_failed_writes_are_errors(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write raises its error, although images are written in background threads."""
    write_images(tmp_path / "in", 2)

    def full(image: object, target: Path) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("fastcyclegan.inference.translate_folder.save_image", full)
    with pytest.raises(OSError, match="No space left"):
        run(weights, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    "change", [{"batch_size": 0}, {"resize": 0}, {"num_threads": 0}, {"device": "tpu"}, {"epoch": "best"}]
)
def test_invalid_settings_are_rejected(change: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        TranslateConfig(Path("w"), Path("i"), Path("o"), **change)
