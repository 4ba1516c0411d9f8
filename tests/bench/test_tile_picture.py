"""The picture of tiles: its columns, what it says about differences, and its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import tile_picture
from fastcyclegan import Generator
from fastcyclegan.inference.translator import Translator

HEIGHT, WIDTH = 96, 128


@pytest.fixture
def photo() -> np.ndarray:
    """Return an image whose left half is dark and whose right half is bright, so that its tiles differ."""
    pixels = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, WIDTH // 2 :] += 180
    return pixels


@pytest.fixture
def net() -> Generator:
    torch.manual_seed(0)
    return Generator(ngf=4, n_blocks=1).eval()


def test_only_exact_tiles_equal_the_whole_image(photo: np.ndarray, net: Generator) -> None:
    translator = Translator(net, torch.device("cpu"), "fp32")
    upper, lower = tile_picture.panels(translator, photo, 64, 16)
    assert [title for title, _ in upper] == [
        "photograph",
        "independent tiles of 64",
        "the same, overlapping by 16",
        "exact tiles of 64",
    ]
    assert upper[0][1] is photo
    whole = lower[0][1].astype(int)
    for (_, image), (title, shown) in zip(upper[1:], lower[1:], strict=True):
        apart = np.abs(image - whole)
        assert title == f"difference x 2, at most {apart.max()} of 255"
        np.testing.assert_array_equal(shown, np.minimum(2 * apart, 255))
    # Rounding can put a value on the other side of a half.
    assert [image.max() > 2 for _, image in lower[1:]] == [True, True, False]


def test_draws_a_file(photo: np.ndarray, net: Generator, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pth")
    Image.fromarray(photo).save(tmp_path / "photo.png")
    output = tmp_path / "new" / "tiles.png"
    arguments = ["--weights", str(tmp_path / "net.pth"), "--image", str(tmp_path / "photo.png")]
    options = "--tile 64 --overlap 16 --width 64".split()
    assert tile_picture.main([*arguments, *options, "--output", str(output)]) == 0
    with Image.open(output) as sheet:
        assert sheet.size == (4 * 64 + 3 * 10, 2 * (24 + 48) + 10)
        # The photograph is below its title, at the left.
        shown = np.asarray(sheet.crop((0, 24, 64, 72)), float)
    assert shown[:, :30].mean() < 40
    assert shown[:, 34:].mean() > 190


def test_refuses_a_tile_that_the_network_cannot_have(
    photo: np.ndarray, net: Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(net.state_dict(), tmp_path / "net.pth")
    Image.fromarray(photo).save(tmp_path / "photo.png")
    arguments = ["--weights", str(tmp_path / "net.pth"), "--image", str(tmp_path / "photo.png")]
    with pytest.raises(SystemExit) as ended:
        tile_picture.main([*arguments, "--tile", "4"])
    assert ended.value.code == 2
    assert "error: --tile must be at least 8" in capsys.readouterr().err
