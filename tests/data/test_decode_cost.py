"""Bombs are refused before they are decoded, estimates cover the real peak, and threads share a budget."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.data import decode_cost, image_file
from fastcyclegan.data.checked_files import check_files
from fastcyclegan.data.decode_cost import Budget, bytes_to_decode, bytes_to_open, require_bounded
from fastcyclegan.data.fit import Fit, load_pixels
from fastcyclegan.data.image_file import (
    BadImageError,
    LackOfMemoryError,
    examine,
    open_image,
    read_header,
)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def resized_jpeg(width: int, height: int, **options: object) -> bytes:
    """Return a JPEG file that declares another size than its data have."""
    data = encoded(Image.new("RGB", (16, 16)), "JPEG", **options)
    marker = b"\xff\xc2" if options.get("progressive") else b"\xff\xc0"
    at = data.index(marker) + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def tall_png(height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def bombs() -> dict[str, bytes]:
    """Files of a few hundred bytes that would take gigabytes, below Pillow's limit of 179 million pixels."""
    # A lossless WebP image of one colour. Its width and height less one follow, in 14 bits each.
    webp = encoded(Image.new("RGB", (16, 16)), "WEBP", lossless=True)
    at = webp.index(b"VP8L") + 9
    size = struct.unpack_from("<I", webp, at)[0] & ~(2**28 - 1)
    large = webp[:at] + struct.pack("<I", size | 16382 | 10899 << 14) + webp[at + 4 :]
    return {
        "progressive.jpg": resized_jpeg(13370, 13370, progressive=True),
        "tall.png": tall_png(178_000_000),
        "one_colour.webp": large,
    }


@pytest.mark.parametrize("name", bombs())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, data = tmp_path / name, bombs()[name]
    path.write_bytes(data)
    assert len(data) < 1000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with pytest.raises(
        BadImageError,
        match=r"takes \d\.\d GiB of memory, and the limit is 1 GiB; make .* or pass --allow_",
    ) as bad:
        open_image(path)
    assert bad.value.is_lasting
    assert read_header(data) == ((0, 0), False)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_photographs_are_not_bombs() -> None:
    """A baseline JPEG is decoded row by row, so Pillow's own limit comes first."""
    image = Image.open(io.BytesIO(resized_jpeg(12000, 12000)))
    assert bytes_to_decode(image, resized_jpeg(12000, 12000)) < 0.6 * 2**30
    image = Image.open(io.BytesIO(resized_jpeg(9000, 9000, progressive=True)))
    assert require_bounded(image, resized_jpeg(9000, 9000, progressive=True)) < 2**30


@pytest.mark.parametrize("scans", [99, 101])
def test_jpeg_files_of_many_scans_are_refused(tmp_path: Path, scans: int) -> None:
    whole = encoded(Image.new("RGB", (16, 16)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    data = whole[:-2] + last * (scans - decode_cost.jpeg_scans(whole, 1000)) + b"\xff\xd9"
    assert decode_cost.jpeg_scans(data, 1000) == scans
    path = tmp_path / "scans.jpg"
    path.write_bytes(data)
    if scans <= decode_cost.MOST_SCANS:
        assert open_image(path).size == (16, 16)
        return
    with pytest.raises(BadImageError, match=r"scans.jpg: it has more than 100 scans, which would take long"):
        open_image(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.ppm"
    with path.open("wb") as file:
        file.truncate(2**30 + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read"))
    with pytest.raises(BadImageError, match=r"large.ppm: the file is too large \(1\.0 GiB"):
        open_image(path)


def test_the_messages_name_the_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (20, 20)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImageError) as bad:
        open_image(path)
    wanted = "it has more than 200 pixels; make the image smaller or pass --allow_decompression_bombs"
    assert bad.value.reason == wanted


def test_the_bounds_are_lifted_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the file, the pixels, the memory, and the scans of a JPEG file."""
    path = tmp_path / "scans.jpg"
    path.write_bytes(encoded(Image.linear_gradient("L").convert("RGB"), "JPEG", progressive=True))
    wanted = open_image(path).tobytes()
    for target, value, reason in (
        ("fastcyclegan.data.image_file.MOST_BYTES", 100, "the file is too large"),
        ("PIL.Image.MAX_IMAGE_PIXELS", 100, "it has more than 200 pixels"),
        ("fastcyclegan.data.decode_cost.MOST_BYTES", 100, "GiB of memory, and the limit is"),
        ("fastcyclegan.data.decode_cost.MOST_SCANS", 2, "it has more than 2 scans"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(target, value)
            with pytest.raises(BadImageError, match=f"{reason}.* or pass --allow_decompression_bombs"):
                open_image(path)
            assert open_image(path, any_size=True).tobytes() == wanted
            found = examine(path, any_size=True)
            assert (found.size, found.plain) == ((256, 256), target.endswith("file.MOST_BYTES"))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_images_of_any_size_are_limited_by_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A lack of memory is told before anything is decoded. What all images may take is not compared."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (64, 64)), form, lossless=True))
    monkeypatch.setattr(image_file, "available_memory", lambda: 1000)
    assert open_image(path, any_size=True).size == (64, 64)
    monkeypatch.setattr(image_file, "MOST_BYTES", 500)
    with monkeypatch.context() as patched:
        patched.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
        with pytest.raises(
            LackOfMemoryError, match=r"a.png: it needs about 0.0 GiB of memory, and 0.0 GiB are"
        ):
            open_image(path, any_size=True)
        patched.setattr(image_file, "total_memory", lambda: 1000)
        with pytest.raises(BadImageError, match=r"a.png: it needs about 0.0 GiB of memory") as caught:
            open_image(path, any_size=True)
        assert not caught.value.is_lack_of_memory  # it never fits, so it can be skipped
    monkeypatch.setattr(image_file, "available_memory", lambda: None)  # this is not Linux
    assert open_image(path, any_size=True).size == (64, 64)


@pytest.mark.slow
def test_an_image_of_180_megapixels(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (15_000, 12_000), 7).save(path)
    with pytest.raises(BadImageError, match="it has more than 178,956,970 pixels"):
        open_image(path)
    assert open_image(path, 1, any_size=True).size == (15_000, 12_000)
    fit = Fit("resize_and_crop", 64, 64, any_size=True)
    assert (load_pixels(path, fit) == 7).all()
    checked = check_files([path], any_size=True)[0]
    assert (checked.width, checked.height, checked.error, checked.plain) == (15_000, 12_000, "", False)


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {}, {"exif": b"Exif\0\0"}], ids=["VP8L", "VP8", "VP8X"]
)
def test_the_canvas_of_webp_is_known_before_it_is_opened(options: dict[str, object]) -> None:
    data = encoded(Image.new("RGB", (123, 45)), "WEBP", **options)
    assert bytes_to_open(data) == 8 * 123 * 45
    assert bytes_to_open(data[:20]) == 0
    assert bytes_to_open(encoded(Image.new("RGB", (123, 45)), "PNG")) == 0


FORMATS: dict[str, tuple[str, str, dict[str, object]]] = {
    "baseline": ("JPEG", "RGB", {}),
    "progressive": ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    "CMYK": ("JPEG", "CMYK", {"progressive": True}),
    "png": ("PNG", "RGB", {"compress_level": 1}),
    "palette": ("PNG", "P", {"compress_level": 1}),
    "gif": ("GIF", "P", {}),
    "bmp": ("BMP", "RGB", {}),
    "tga": ("TGA", "RGB", {}),
    "tiff": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "webp": ("WEBP", "RGB", {}),
    "lossless webp": ("WEBP", "RGBA", {"lossless": True, "method": 0}),
    "avif": ("AVIF", "RGBA", {"speed": 10}),
    "jpeg 2000": ("JPEG2000", "RGB", {}),
}


def peak(body: object) -> int:
    """Return by how many bytes the memory of this process grows at most while ``body`` runs."""
    status = Path("/proc/self/status")

    def bytes_of(name: str) -> int:
        return int(status.read_text().partition(f"{name}:")[2].split()[0]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use now
    before = bytes_of("VmRSS")
    body()  # type: ignore[operator]
    return bytes_of("VmHWM") - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="measured with Linux's /proc")
@pytest.mark.parametrize("name", FORMATS)
def test_the_estimate_covers_the_peak(name: str) -> None:
    """It may be exceeded by 8 MiB, for buffers that do not depend on the size of the image."""
    form, mode, options = FORMATS[name]
    if form not in image_file.READABLE:
        pytest.skip(f"this Pillow does not read {form}")
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((1600, 1600), Image.Resampling.BILINEAR).convert(mode)
    data = encoded(image, form, **options)
    opened = Image.open(io.BytesIO(data))
    estimate = bytes_to_decode(opened, data)
    assert peak(opened.load) <= estimate + 2**23
    assert estimate <= 24 * 1600 * 1600


def test_threads_share_a_budget() -> None:
    budget, most, lock = Budget(100), 0, threading.Lock()

    def work(count: int) -> None:
        nonlocal most
        for _ in range(20):
            with budget.holding(count):
                with lock:
                    most = max(most, budget.taken)
                time.sleep(0.0005)

    threads = [threading.Thread(target=work, args=(count,)) for count in (10, 30, 30, 45, 60, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert 60 <= most <= 100
    assert budget.taken == 0


def test_what_exceeds_the_budget_runs_alone() -> None:
    budget, order = Budget(100), []

    def large() -> None:
        with budget.holding(500):
            order.append(budget.taken)

    thread = threading.Thread(target=large)
    with budget.holding(10):
        thread.start()
        time.sleep(0.05)
        assert order == []
    thread.join(60)
    assert order == [500]
    with pytest.raises(ZeroDivisionError), budget.holding(100):
        _ = 1 / 0
    assert budget.taken == 0


def test_a_forked_process_starts_with_the_whole_budget() -> None:
    with decode_cost.DECODED.holding(decode_cost.MOST_BYTES):
        child = os.fork()
        if child == 0:
            with decode_cost.DECODED.holding(decode_cost.MOST_BYTES):
                os._exit(0)
        deadline = time.monotonic() + 60
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, 9)
            os.waitpid(child, 0)
    assert ended == (child, 0)


def test_scanning_threads_decode_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget, taken = Budget(3 * 4 * 64 * 72), []
    monkeypatch.setattr(image_file, "DECODED", budget)
    load = image_file.require_supported

    def noting(image: Image.Image) -> None:
        taken.append(budget.taken)
        time.sleep(0.01)
        load(image)

    monkeypatch.setattr(image_file, "require_supported", noting)
    for n in range(16):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{n}.png")
    checks = check_files(sorted(tmp_path.glob("*.png")))
    assert not any(check.error for check in checks)
    assert len(taken) == 16
    assert 0 < max(taken) <= budget.total
