"""The transcription of the official test.py writes the pixels that the reference network computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import official_test
from fastcyclegan import reference
from tests.conftest import write_images

SMALL = ["--load_size", "32", "--crop_size", "32", "--ngf", "4", "--n_blocks", "1"]


def run(folder: Path, *arguments: str) -> Path:
    """Translate the images in ``folder / "images"`` and return the folder of the results."""
    paths = ["--dataroot", folder / "images", "--weights", folder / "G.pth", "--results_dir", folder / "out"]
    assert official_test.main([*map(str, paths), *SMALL, *arguments]) == 0
    return folder / "out"


@pytest.fixture
def net(tmp_path: Path) -> reference.Generator:
    torch.manual_seed(0)
    net = reference.Generator(ngf=4, n_blocks=1)
    torch.save(net.state_dict(), tmp_path / "G.pth")
    return net


@pytest.mark.parametrize("size", [(32, 32), (40, 24)], ids=["equal", "resized"])
def test_writes_the_translations_of_the_reference(
    size: tuple[int, int], net: reference.Generator, tmp_path: Path
) -> None:
    sources = write_images(tmp_path / "images", 2, size)
    out = run(tmp_path)
    for source in sources:
        image = Image.open(source).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        with torch.no_grad():
            fake = net(pixels[None].float() / 127.5 - 1)[0]
        expected = (fake.permute(1, 2, 0) + 1) / 2 * 255
        written = np.array(Image.open(out / "images" / f"{source.stem}_fake.png"))
        # Rounded down; the last bits of the network's result can differ.
        assert np.abs(written + 0.5 - expected.numpy()).max() <= 0.5 + 1e-3
        real = np.array(Image.open(out / "images" / f"{source.stem}_real.png"))
        assert np.abs(real.astype(int) - np.array(image)).max() <= 1
    page = (out / "index.html").read_text()
    assert page.count("<img ") == 2 * len(sources)
    assert {path.name for path in (out / "images").iterdir()} == {
        f"{source.stem}_{label}.png" for source in sources for label in ("real", "fake")
    }


def test_crops_what_it_resizes(net: reference.Generator, tmp_path: Path) -> None:
    (source,) = write_images(tmp_path / "images", 1, (40, 40))
    out = run(tmp_path, "--load_size", "40")
    real = np.array(Image.open(out / "images" / f"{source.stem}_real.png")).astype(int)
    whole = np.array(Image.open(source)).astype(int)
    crops = [whole[top : top + 32, left : left + 32] for top in range(9) for left in range(9)]
    assert min(np.abs(crop - real).max() for crop in crops) <= 1
