"""Check every file once before training starts.

A check decodes the whole file, because the header does not show whether the rest is there. Results are stored
in the user's cache folder by path, size and modification time, so the next run with the same files needs only
one stat call per file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from fastcyclegan.data.background import ReadingThreads, result_of
from fastcyclegan.data.image_file import ORIENTATION, BadImageError, open_image, read_header, reading_error
from fastcyclegan.errors import system_reason
from fastcyclegan.tensor_files import remove_stale_partials, write_atomically

CACHE_VERSION = 2


@dataclass(frozen=True)
class Checked:
    """The result of checking one file.

    ``path``, ``bytes`` and ``mtime_ns`` identify the file on disk. ``width`` and ``height`` are the size of
    the upright image in pixels, and ``mode`` is Pillow's mode. ``error`` is the reason why the file cannot be
    used, or "". ``plain`` is True if every decoder reads the file alike; see ``image_file.read_header``.
    """

    path: str
    bytes: int
    mtime_ns: int
    width: int = 0
    height: int = 0
    mode: str = ""
    error: str = ""
    plain: bool = False

    def is_unchanged(self) -> bool:
        """Return whether the file on disk is still the one that was checked."""
        try:
            stat = Path(self.path).stat()
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.mtime_ns)


def check_file(path: Path) -> Checked:
    """Decode the file ``path`` completely and return the result of the check.

    Raises UserError if the machine has no file descriptors or memory left.
    """
    try:
        return _check(path)
    except (OSError, MemoryError) as error:  # the file may have changed or disappeared during the check
        failed = reading_error(path, error)
        if not isinstance(failed, BadImageError):
            raise failed from None
        return Checked(str(path), -1, -1, error=failed.reason)


def _check(path: Path) -> Checked:
    try:
        stat = path.stat()
    except OSError as error:
        return Checked(str(path), -1, -1, error=system_reason(error))
    identity = (str(path), stat.st_size, stat.st_mtime_ns)
    if not path.is_file():  # reading a pipe would block forever
        return Checked(*identity, error="not a regular file")
    try:
        open_image(path)
        _, plain = read_header(path.read_bytes())
        with Image.open(path) as header:
            width, height = header.size
            if header.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8):  # stored with width and height swapped
                width, height = height, width
            return Checked(*identity, width, height, header.mode, plain=plain)
    except BadImageError as bad:
        return Checked(*identity, error=bad.reason)


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) if base else Path.home() / ".cache"
    return folder / "fastcyclegan" / "checked_images.json"


def _read_cache(file: Path) -> dict[str, Checked]:
    try:
        saved = json.loads(file.read_text())
        if saved["version"] != CACHE_VERSION:
            return {}
        return {record["path"]: Checked(**record) for record in saved["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # the cache is missing or damaged: check every file again


def _write_cache(file: Path, records: Iterable[Checked]) -> None:
    text = json.dumps({"version": CACHE_VERSION, "files": [asdict(record) for record in records]})
    # If the cache cannot be written, the only effect is that the next run takes a few seconds longer.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(file.parent)
        write_atomically(file, lambda partial: partial.write_text(text))


def _threads() -> int:
    count = os.cpu_count()
    return 1 if count is None else min(8, count)


def check_files(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[Checked]:
    """Check ``paths`` and return the results in order.

    For files that have not changed since an earlier check, the result comes from the cache. ``progress`` is
    called with the number of files checked so far and the total, after every file and several times per
    second while one takes long. An exception that it raises ends the checks at once.
    """
    cache_file = _cache_file()
    cache = _read_cache(cache_file)

    def check(path: Path) -> Checked:
        known = cache.get(str(path.absolute()))
        if known is not None and known.is_unchanged():
            return known
        return check_file(path.absolute())

    results: list[Checked] = []

    def report() -> bool:
        """Call ``progress``. It ends the checks by an exception, so the result is always False."""
        if progress is not None:
            progress(len(results), len(paths))
        return False

    with ReadingThreads(_threads()) as threads:
        for future in [threads.submit(check, path) for path in paths]:
            results.append(result_of(future, report))
            report()
    fresh = {result.path: result for result in results if result.bytes >= 0}
    if any(cache.get(path) != result for path, result in fresh.items()):
        _write_cache(cache_file, {**cache, **fresh}.values())
    return results
