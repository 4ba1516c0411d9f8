"""Recognise the files that every decoder reads alike, by the structure of their bytes.

Decoders differ in what they make of metadata and of structures that encoders rarely write: whether to rotate
the image, which of several images to take, how colours are stored, what is transparent, and how much damage
to accept. So everything that is known to be read alike is listed here, and a file with anything else is not
plain. Pillow and DALI agreed on every plain one of 37,500 altered files (tests/data/altered_images.py).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

# --- JPEG ---------------------------------------------------------------------------------------------------

SOF0, SOF1, SOF2, DHT, RST0, RST7, SOI, EOI = 0xC0, 0xC1, 0xC2, 0xC4, 0xD0, 0xD7, 0xD8, 0xD9
SOS, DQT, DRI, APP0, APP14, APP15, COM = 0xDA, 0xDB, 0xDD, 0xE0, 0xEE, 0xEF, 0xFE
# Inside a scan, FF 00 stands for a byte of data.
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00]")
# The end of a scan in a file that may be damaged: anything but data, fill bytes and restart markers.
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True)
class _Segment:
    """A segment of a JPEG file: its marker, its content, and where in the file it ends."""

    marker: int
    content: bytes
    end: int


class _OddError(ValueError):
    """Raised at a structure that is not plain."""


def _require(is_plain: bool) -> None:
    if not is_plain:
        raise _OddError


def _segment(data: bytes, at: int) -> _Segment:
    """Return the segment that begins at ``at``. Raises _OddError if there is none."""
    _require(len(data) >= at + 2 and data[at] == 0xFF)
    marker = data[at + 1]
    if marker == EOI:
        return _Segment(EOI, b"", at + 2)
    _require(len(data) >= at + 4)
    end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
    _require(at + 4 <= end <= len(data))
    return _Segment(marker, data[at + 4 : end], end)


def jpeg_scans(data: bytes, most: int) -> int:
    """Return the number of scans of the JPEG file ``data``, which may be damaged, but at most ``most``."""
    scans = 0
    for marker in _jpeg_markers(data):
        scans += marker == SOS
        if scans == most:
            break
    return scans


def ends_in_a_scan(data: bytes) -> bool:
    """Return whether the JPEG file ``data`` ends within the data of a scan, without any marker after it.

    Such a file was not written completely. Pillow notices that only if the rest is missing, but not if the
    rest is filled with zeros, as disks do after a crash.
    """
    last = -1
    for last in _jpeg_markers(data):  # noqa: B007
        pass
    return last == SOS


def _jpeg_markers(data: bytes) -> Iterator[int]:
    """Yield the markers of the segments of a JPEG file, up to EOI or the first damage.

    After a scan that does not end, nothing follows. After other damage, -1 does.
    """
    at = 2
    try:
        while True:
            while data[at : at + 2] == b"\xff\xff":  # fill bytes
                at += 1
            segment = _segment(data, at)
            yield segment.marker
            at = segment.end
            if segment.marker == EOI:
                return
            if segment.marker == SOS:
                following = _SCAN_END.search(data, at)
                if following is None:
                    return
                at = following.start()
    except _OddError:
        yield -1


@dataclass
class _Frame:
    """The frame header of a JPEG file: its marker, size and sampling factors, and the components' numbers."""

    marker: int
    width: int
    height: int
    components: bytes
    samplings: bytes

    @classmethod
    def of(cls, segment: _Segment) -> _Frame:
        """Read a header of 8-bit gray, or of YCbCr in a common sampling. Raises _OddError for others."""
        content = segment.content
        _require(len(content) >= 6)
        bits, height, width, count = struct.unpack_from(">BHHB", content)
        _require(bits == 8 and height > 0 and width > 0 and len(content) == 6 + 3 * count)
        components, samplings = content[6::3], content[7::3]
        if count == 1:
            _require(samplings == b"\x11")
        else:
            _require(components == b"\1\2\3" and samplings[1:] == b"\x11\x11")
            _require(samplings[0] in (0x11, 0x21, 0x12, 0x22))
        return cls(segment.marker, width, height, components, samplings)

    def units(self, scanned: bytes) -> int:
        """Return the number of coding units of a scan of the components ``scanned``."""
        across, down = self.samplings[0] >> 4, self.samplings[0] & 15
        if len(scanned) > 1:
            return -(-self.width // (8 * across)) * -(-self.height // (8 * down))
        width, height = self.width, self.height
        if scanned[0] != self.components[0]:
            width, height = -(-width // across), -(-height // down)
        return -(-width // 8) * -(-height // 8)


class _Jpeg:
    """Walks through a JPEG file. Raises _OddError at the first structure that is not plain."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.frame: _Frame | None = None
        self.interval = self.scans = 0

    def check(self) -> None:
        _require(self.data.startswith(b"\xff\xd8"))
        segment = _segment(self.data, 2)
        while segment.marker != EOI:
            end = self._check_segment(segment)
            segment = _segment(self.data, end)
        _require(self.scans > 0 and segment.end == len(self.data))

    def _check_segment(self, segment: _Segment) -> int:
        """Check a segment and return where the next one begins."""
        marker, content = segment.marker, segment.content
        # Pillow and DALI differ in how they treat what follows the first scan.
        _require(self.scans == 0 or marker in (DHT, SOS))
        if marker == SOS:
            return self._check_scan(segment)
        if marker in (SOF0, SOF1, SOF2):
            _require(self.frame is None)
            self.frame = _Frame.of(segment)
        elif marker == DQT:
            _check_quantization(content)
        elif marker == DHT:
            _check_huffman(content)
        elif marker == DRI:
            _require(len(content) == 2)
            self.interval = struct.unpack(">H", content)[0]
        elif marker == APP14 and content.startswith(b"Adobe"):
            _require(len(content) >= 12 and content[11] == 1)  # YCbCr, as without this segment
        else:
            _require(APP0 <= marker <= APP15 or marker == COM)
        return segment.end

    def _check_scan(self, segment: _Segment) -> int:
        """Check the header of a scan and the restart markers in its data, and return where the data end."""
        frame, content = self.frame, segment.content
        _require(frame is not None and len(content) > 1 and len(content) == 4 + 2 * content[0])
        assert frame is not None
        scanned = content[1 : 1 + 2 * content[0] : 2]
        _require(scanned in frame.components and len(scanned) > 0)
        if frame.marker != SOF2:
            _require(self.scans == 0 and scanned == frame.components and content[-3:] == b"\0\x3f\0")
        self.scans += 1
        at, restarts = segment.end, 0
        while (found := _MARKER_IN_SCAN.search(self.data, at)) is not None:
            marker = self.data[found.start() + 1]
            if not RST0 <= marker <= RST7:
                break
            _require(self.interval > 0 and marker == RST0 + restarts % 8)
            restarts, at = restarts + 1, found.end()
        _require(found is not None)
        assert found is not None
        if self.interval:
            _require(restarts == -(-frame.units(scanned) // self.interval) - 1)
        return found.start()


def _check_quantization(content: bytes) -> None:
    while content:
        _require(content[0] <= 3 and len(content) >= 65 and 0 not in content[1:65])
        content = content[65:]


def _check_huffman(content: bytes) -> None:
    while content:
        _require(content[0] & 0xEC == 0 and len(content) >= 17)
        codes = 1
        for count in content[1:17]:
            codes = 2 * codes - count
            _require(codes >= 0)  # no more codes of a length than there are
        size = sum(content[1:17])
        _require(size <= 256 and len(content) >= 17 + size)
        content = content[17 + size :]


def is_plain_jpeg(data: bytes) -> bool:
    """Return whether the JPEG file ``data`` has only structures that all decoders read alike.

    The orientation, which metadata contain, is not looked at.
    """
    try:
        _Jpeg(data).check()
    except _OddError:
        return False
    return True


# --- PNG ----------------------------------------------------------------------------------------------------

PNG_START = b"\x89PNG\r\n\x1a\n"
# Descriptions of the colours of sRGB. libpng, which DALI uses, warns of some others without naming the file.
_SRGB = {
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}
# The sizes in bytes of chunks that do not affect the pixels, in a gray and in an RGB image.
_CHUNK_SIZES = {
    b"sRGB": (1, 1),
    b"pHYs": (9, 9),
    b"tIME": (7, 7),
    b"sBIT": (1, 3),
    b"bKGD": (2, 6),
}
# Keywords of texts, most of them from the PNG specification (11.3.3.2). Others can contain EXIF or XMP data,
# and Pillow takes some for properties of the image, such as a text "transparency".
_KEYWORDS = frozenset(
    (
        *(b"Title", b"Author", b"Description", b"Copyright", b"Creation Time", b"Software", b"Disclaimer"),
        *(b"Warning", b"Source", b"Comment", b"date:create", b"date:modify", b"date:timestamp"),
    )
)
_MOST_TEXT = 2**20


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the names and contents of the chunks of a PNG file. Raises _OddError for a damaged one."""
    at = len(PNG_START)
    _require(data.startswith(PNG_START))
    while at < len(data):
        _require(len(data) >= at + 12)
        size, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + size
        _require(end + 4 <= len(data))
        _require(zlib.crc32(data[at + 4 : end]) == struct.unpack_from(">I", data, end)[0])
        yield name, data[at + 8 : end]
        at = end + 4


def _check_header(content: bytes) -> bool:
    """Check the first chunk of a PNG file, and return whether the image is in colour."""
    _require(len(content) == 13)
    width, height, bits, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", content)
    _require(width > 0 and height > 0 and bits == 8 and colour in (0, 2))
    _require(compression == 0 and filters == 0 and interlace in (0, 1))
    return bool(colour)


def _check_chunks(data: bytes) -> None:
    chunks = _chunks(data)
    name, content = next(chunks, (b"", b""))
    _require(name == b"IHDR")
    in_colour = _check_header(content)
    names = [name]
    for name, content in chunks:
        if name in (b"tEXt", b"zTXt", b"iTXt"):
            _require(content.partition(b"\0")[0] in _KEYWORDS and len(content) <= _MOST_TEXT)
        elif name == b"IDAT":
            _require(names[-1] == b"IDAT" or b"IDAT" not in names)
        else:
            _require(name not in names and names[-1] != b"IEND")
            if name == b"IEND":
                _require(not content and b"IDAT" in names)
            elif name in _SRGB:
                _require(content == _SRGB[name])
            else:
                _require(name in _CHUNK_SIZES and len(content) == _CHUNK_SIZES[name][in_colour])
        names.append(name)
    _require(names[-1] == b"IEND")


def is_plain_png(data: bytes) -> bool:
    """Return whether the PNG file ``data`` is an 8-bit gray or RGB image that all decoders read alike."""
    try:
        _check_chunks(data)
    except _OddError:
        return False
    return True


# Samples per pixel of the colour types of PNG.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column, first row, and distances between columns and rows of the passes of an interlaced PNG image.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 2**20


def fault_in_png(data: bytes) -> str:
    """Return what is wrong with the compressed data of the PNG file ``data``, or "".

    Pillow does not verify their checksums, and leaves rows black that are missing. ``data`` must be a file
    that Pillow decodes.
    """
    missing = _bytes_of_rows(data)
    inflater = zlib.decompressobj()
    at = len(PNG_START)
    while len(data) >= at + 12:
        size, name = struct.unpack_from(">I4s", data, at)
        at, start = at + size + 12, at + 8
        if name != b"IDAT":
            continue
        content = memoryview(data)[start : start + size]
        if data[start + size : at] != struct.pack(">I", zlib.crc32(content, zlib.crc32(name))):
            return "the image data are damaged"
        piece = bytes(content)
        while piece and missing > 0:
            missing -= len(inflater.decompress(piece, _PIECE))
            piece = inflater.unconsumed_tail
    return "the image ends before its last row" if missing > 0 else ""


def _bytes_of_rows(data: bytes) -> int:
    """Return the number of bytes of all rows of a PNG file before compression."""
    width, height, bits, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, len(PNG_START) + 8)
    size = 0
    for left, top, across, down in _PASSES if interlace else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            size += rows * (1 + -(-columns * bits * _SAMPLES[colour] // 8))
    return size
