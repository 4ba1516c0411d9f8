"""Messages of the libraries that decode images: a broken TIFF file is reported once, with its name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data.image_file import BadImageError, open_image


@pytest.mark.skipif(sys.platform != "linux", reason="finds the library with Linux's /proc")
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_libtiff_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str], compression: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "x.tif"
    Image.fromarray(noise).save(path, compression=compression)
    data = path.read_bytes()
    path.write_bytes(data[:300] + b"\x55" * 200 + data[500:])
    with pytest.raises(BadImageError, match=r"x\.tif: \w"):
        open_image(path)
    assert capfd.readouterr().err == ""
