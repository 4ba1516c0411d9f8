"""Native libraries: libtiff prints nothing, and threads do not keep the memory of large images."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data import native_libraries
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


def test_a_library_of_a_similar_name_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """DALI has a plug-in whose name begins with libtiff, too."""
    others = ["/no/libtiff_missing.so", ctypes.util.find_library("c")]
    loaded = native_libraries._loaded
    monkeypatch.setattr(native_libraries, "_loaded", lambda name: [*others, *loaded(name), *others])
    native_libraries.silence_libtiff.cache_clear()
    test_libtiff_prints_nothing(tmp_path, capfd, "tiff_lzw")


@pytest.mark.skipif(sys.platform != "linux", reason="measured with Linux's /proc")
def test_threads_return_the_memory_of_large_images(tmp_path: Path) -> None:
    """They decode one after the other, because two do not fit into the budget, and keep nothing.

    An image takes 137 MiB, so there are never more than two, one of which is about to be returned. glibc
    would keep one per thread.
    """
    Image.new("RGB", (6000, 6000), "red").save(tmp_path / "x.jpg")
    code = f"""
import resource, threading
from fastcyclegan.data import decode_cost, image_file
image_file.DECODED = decode_cost.Budget(2**27)
all_done = threading.Barrier(4)
def work():
    for _ in range(2):
        image_file.examine("{tmp_path}/x.jpg")
    all_done.wait()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 2.5 * 137
