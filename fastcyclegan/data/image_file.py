"""Decode image files into upright 8-bit pixels, and find out whether they are whole.

Decoding deliberately differs from the official code in three ways. EXIF rotation is honoured. 16-bit images
are scaled to 8 bits (Pillow's own conversion clips them to white). Transparent pixels show a white background
(dropping alpha would show whatever colour is stored there).

An image is whole if Pillow decodes it without an error, whatever decodes it in the end.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, features

from fastcyclegan.data.decode_cost import (
    DECODED,
    FILES,
    GIB,
    MOST_BYTES,
    WAY_OUT,
    bytes_to_decode,
    bytes_to_open,
    excess,
    require_bounded,
    stored_bytes,
    too_many_pixels,
)
from fastcyclegan.data.eight_bits import (
    brightest_of,
    dark_values,
    eight_bits,
    has_sixteen_bits,
    is_dark,
    require_supported,
)
from fastcyclegan.data.host_memory import available_memory, total_memory
from fastcyclegan.data.native_libraries import return_memory, silence_libtiff
from fastcyclegan.data.pixel_limit import beyond_limit, open_beyond_limit
from fastcyclegan.data.plain_files import ends_in_a_scan, fault_in_png, is_plain_jpeg, is_plain_png
from fastcyclegan.errors import UserError, one_line, system_reason

# The formats that are read, by Pillow's names, and their suffixes. A file of any suffix may have any of these
# formats, except for those of BY_SUFFIX. Pillow's other formats are not read: some start another program, as
# EPS does, some are decoded by slow Python code, and the rest is not used for photographs.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpx"),
    "TGA": (".tga",),
}
# These have no signature, so files that are no images could be taken for them.
BY_SUFFIX = ("DIB", "TGA")
# Formats that Pillow can be built without; the first versions supported here do not know AVIF.
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}


def _is_supported(name: str) -> bool:
    """Return whether Pillow, as installed here, reads the format ``name``."""
    feature = _OPTIONAL.get(name)
    if feature is None:
        return True
    return feature in (*features.modules, *features.codecs) and features.check(feature) is True


READABLE = tuple(name for name in FORMATS if _is_supported(name))
"""The formats that this installation of Pillow reads."""
SUFFIXES = frozenset(suffix for name in READABLE for suffix in FORMATS[name])

# Errors of the operating system that do not depend on the file: it has no file descriptors or memory left.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
Pixels = NDArray[np.uint8]
Warn = Callable[[str], None]
Size = tuple[int, int]
"""(width, height), in Pillow's order."""

ORIENTATION = 0x0112
_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LARGE = 2**23
"""Pixels of an image whose memory is returned to the system at once."""


class BadImageError(UserError):
    """An image that cannot be used; the message names the file and the problem.

    ``is_lasting`` is true if the bytes of the file are the problem, and false if they could not be read.
    ``is_lack_of_memory`` is true if the problem is the machine's, so the file may be good.
    """

    is_lack_of_memory = False

    def __init__(self, path: Path | str, reason: str, is_lasting: bool = True) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.is_lasting = str(path), reason, is_lasting

    def __reduce__(self) -> tuple[type[BadImageError], tuple[str, str, bool]]:
        return type(self), (self.path, self.reason, self.is_lasting)


class LackOfMemoryError(BadImageError):
    """An image for which the machine has no memory."""

    is_lack_of_memory = True

    def __init__(self, path: Path | str, reason: str = "cannot be read: out of memory") -> None:
        super().__init__(path, reason, is_lasting=False)

    def __reduce__(self) -> tuple[type[LackOfMemoryError], tuple[str, str]]:  # type: ignore[override]
        return type(self), (self.path, self.reason)


def _turned(image: Image.Image) -> Image.Image:
    """Return ``image`` turned upright by its EXIF or XMP data, or itself if it is upright."""
    method = _UPRIGHT_BY.get(image.getexif().get(ORIENTATION, 1))
    if method is None:
        return image
    turned = image.transpose(method)
    turned.format = image.format
    return turned


def upright(image: Image.Image, channels: int = 3) -> Image.Image:
    """Turn ``image`` upright by its EXIF data and convert it to mode RGB (3 channels) or L (1).

    Raises BadImageError if that fails.
    """
    try:
        image.load()
        require_supported(image)
        return eight_bits(_turned(image), channels)
    except (ValueError, OSError) as error:
        raise BadImageError("the image", " ".join(str(error).split())) from None


def _file_size(path: Path | str, any_size: bool) -> int:
    """Return the size in bytes of a regular file, which must not be enormous unless ``any_size`` is set."""
    info = Path(path).stat()
    if not stat.S_ISREG(info.st_mode):  # reading a pipe would block forever
        raise BadImageError(path, "not a regular file", is_lasting=False)
    if info.st_size > MOST_BYTES and not any_size:
        size = f"{info.st_size / GIB:.1f} GiB, and the limit is {MOST_BYTES / GIB:g} GiB"
        raise ValueError(f"the file is too large ({size}); make it smaller or {WAY_OUT}")
    _require_memory(path, info.st_size)
    return info.st_size


def _require_memory(path: Path | str, needed: int) -> None:
    """Raise LackOfMemoryError if an image needs more memory than is free; BadImageError, than there is.

    What all images may need is not compared, so the result for such an image depends on its file alone.
    """
    free = available_memory() if needed > MOST_BYTES else None
    if free is not None and needed > free:
        reason = f"it needs about {needed / GIB:,.1f} GiB of memory, and {free / GIB:,.1f} GiB are free"
        if needed > total_memory():  # the file is the problem, not what else runs
            raise BadImageError(path, reason, is_lasting=False)
        raise LackOfMemoryError(path, reason)


def _opened(data: bytes, suffix: str = "", any_size: bool = False) -> ImageFile.ImageFile:
    """Read the header of an encoded image of a supported format, from a file with ``suffix``.

    Raises DecompressionBombError for an image beyond Pillow's limit, unless ``any_size`` is set.
    """
    formats = [name for name in READABLE if name not in BY_SUFFIX or suffix.lower() in FORMATS[name]]
    try:
        image = Image.open(BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        if not any_size:
            raise
        image = open_beyond_limit(data, formats)
    if image.format == "TIFF":
        silence_libtiff()
    return image


def _require_complete(image: ImageFile.ImageFile, data: bytes) -> None:
    """Raise ValueError if a part is missing from the file of an image that Pillow decodes nevertheless."""
    if image.format == "PNG":
        fault = fault_in_png(data)
        if fault:
            raise ValueError(fault)
    if image.format in ("JPEG", "MPO") and ends_in_a_scan(data):
        raise ValueError("the file ends within the image, as if it was not written completely")


@dataclass(frozen=True)
class _Decoded:
    """A decoded image, the bytes of its file, and whether the file stores 16 bits per channel."""

    image: ImageFile.ImageFile
    data: bytes
    has_sixteen_bits: bool


def _bytes_of_any_size(path: Path | str, image: ImageFile.ImageFile, data: bytes) -> int:
    """Return ``bytes_to_decode``. Raises LackOfMemoryError if that and a copy of the image do not fit."""
    needed = bytes_to_decode(image, data)
    _require_memory(path, needed + 4 * image.width * image.height)
    return needed


@contextlib.contextmanager
def _decoding(path: Path | str, any_size: bool = False) -> Iterator[_Decoded]:
    """Decode an image file, and convert all errors, also those of the body, to those of ``open_image``."""
    needed = 0
    try:
        with FILES.holding(_file_size(path, any_size)):
            data = Path(path).read_bytes()
            opening = bytes_to_open(data)
            if any_size:
                _require_memory(path, opening)
            if any_size or opening <= MOST_BYTES:  # otherwise, the image is refused
                needed = opening
            image = _opened(data, Path(path).suffix, any_size)
            if any_size:
                needed = _bytes_of_any_size(path, image, data)
            else:
                needed = require_bounded(image, data)
            is_deep = any(";16" in str(tile[3]) for tile in image.tile[:1])
            with DECODED.holding(max(needed, 2 * stored_bytes(image))):
                if any_size:
                    beyond_limit(image.load)
                else:
                    image.load()
                require_supported(image)
                _require_complete(image, data)
                yield _Decoded(image, data, is_deep or has_sixteen_bits(image))
    except FileNotFoundError:
        raise BadImageError(path, "no such file", is_lasting=False) from None
    except Image.UnidentifiedImageError:
        raise BadImageError(path, "not an image in one of the supported formats") from None
    except Image.DecompressionBombError:
        raise BadImageError(path, too_many_pixels()) from None
    except Exception as error:
        raise reading_error(path, error, needed) from None


def open_image(
    path: Path | str, channels: int = 3, warn: Warn | None = None, any_size: bool = False
) -> Image.Image:
    """Decode an image file and return it upright, in mode RGB (3 channels) or L (1).

    ``warn`` is called with a warning if the file stores 16-bit values, but uses few of the bits. An image
    that costs too much memory or time (see ``decode_cost``) is a fault, unless ``any_size`` is set. Raises
    BadImageError for every fault of the file, LackOfMemoryError if it does not fit into the memory, and
    another UserError if the machine has no file descriptors left.
    """
    with _decoding(path, any_size) as decoded:
        if warn is not None and decoded.has_sixteen_bits:
            brightest = brightest_of(decoded.image)
            if is_dark(brightest):
                warn(f"warning: {dark_values(str(path), brightest)}")
        return eight_bits(_turned(decoded.image), channels)


def reading_error(path: Path | str, error: Exception, needed: int = 0) -> UserError:
    """Return the error to raise if ``error`` occurred while the file ``path`` was read.

    It is a BadImageError, unless the machine has no file descriptors left, and a LackOfMemoryError if the
    machine has no memory, in particular not the ``needed`` bytes.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in EXHAUSTED and error.errno != errno.ENOMEM:
        return UserError(f"{path} cannot be read: {system_reason(error)}")
    if _is_lack_of_memory(error, needed):
        return LackOfMemoryError(path)
    if isinstance(error, OSError) and error.errno is not None:
        return BadImageError(path, system_reason(error), is_lasting=False)
    # Pillow's decoders raise almost anything on a broken file. The messages of some errors are about Python.
    reason = one_line(error)
    if not isinstance(error, (OSError, ValueError, SyntaxError)):
        reason = f"it is damaged ({reason})"
    elif reason.removeprefix("-").isdecimal():  # earlier versions of Pillow give only a number
        reason = f"decoder error {reason}"
    return BadImageError(path, reason)


def _is_lack_of_memory(error: Exception, needed: int) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # Some decoders report a lack of memory as a broken file, so find out whether the memory is there.
    try:
        np.empty(needed, np.uint8)
    except MemoryError:
        return True
    return False


@dataclass(frozen=True)
class Examined:
    """What a complete decoding shows of an image file.

    ``size`` is that of the upright image, and ``mode`` is Pillow's mode. ``plain`` is as in ``read_header``.
    ``brightest`` is the brightest value of a 16-bit image after scaling to 8 bits, or None for other images.
    """

    size: Size
    mode: str
    plain: bool
    brightest: int | None = None


def examine(path: Path | str, any_size: bool = False) -> Examined:
    """Decode an image file completely. Raises the same errors as ``open_image``."""
    with _decoding(path, any_size) as decoded:
        image, size = decoded.image, decoded.image.size
        orientation = image.getexif().get(ORIENTATION, 1)
        eight_bits(image.crop((0, 0, 1, 1)), 3)  # raises what the conversion of the whole image would raise
        if orientation in (5, 6, 7, 8):  # stored with width and height swapped
            size = image.height, image.width
        brightest = brightest_of(image) if decoded.has_sixteen_bits else None
        # Other decoders have no bounds, and are not tried on what exceeds them.
        plain = _is_plain(image, decoded.data) and not excess(image, decoded.data)
        found = Examined(size, image.mode, plain, brightest)
        image.close()
        if size[0] * size[1] >= _LARGE:  # before another thread decodes its image
            return_memory()
        return found


def read_header(data: bytes) -> tuple[Size, bool]:
    """Return the stored size of an encoded image, and whether the image is plain.

    A plain image is one that every decoder reads exactly as ``open_image`` does, provided that it is whole: a
    JPEG or PNG of 8-bit colour or gray, upright, opaque, and complete as far as its structure shows. Pixels
    are not decoded. For data that is not an image, the size is (0, 0).
    """
    try:
        image = _opened(data)
        require_bounded(image, data)
        return image.size, _is_plain(image, data)
    except Exception:  # Pillow can raise anything here; the code that decodes the file reports it
        return (0, 0), False


def is_whole(data: bytes) -> bool:
    """Return whether ``data`` is an encoded image that ``open_image`` decodes without an error.

    A JPEG image is decoded at an eighth of its size, which takes a third to two thirds of the time. That
    finds the same faults, because all of the compressed data is still read.
    """
    try:
        image = _opened(data)
        with DECODED.holding(require_bounded(image, data)):
            image.draft(image.mode, (1, 1))
            image.load()
            _require_complete(image, data)
    except Exception:  # Pillow can raise anything here; the code that decodes the file reports it
        return False
    return True


def _is_plain(image: ImageFile.ImageFile, data: bytes) -> bool:
    if image.mode not in ("RGB", "L") or image.getexif().get(ORIENTATION, 1) != 1:
        return False
    if image.format in ("JPEG", "MPO"):
        return is_plain_jpeg(data)
    return image.format == "PNG" and is_plain_png(data)
