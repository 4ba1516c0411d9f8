"""Check every file once before training starts.

A check decodes the whole file, because the header does not show whether the rest is there. Results are stored
in the user's cache folder by path, size and times, so the next run with the same files needs only one stat
call per file. What is stored depends on the bytes of the file alone: that a file could not be read, or not
for lack of memory, is not remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import PIL
from PIL import ImageFile

from fastcyclegan.data.background import ReadingThreads, result_of
from fastcyclegan.data.image_file import READABLE, BadImageError, Size, examine
from fastcyclegan.data.pixel_limit import max_pixels
from fastcyclegan.errors import system_reason
from fastcyclegan.files.json_file import read_json
from fastcyclegan.files.schema import exactly, flag, list_of, nothing_or, record, text, whole
from fastcyclegan.kernels._cache import cache_folder
from fastcyclegan.tensor_files import remove_stale_partials, write_atomically

CACHE_VERSION = 3


@dataclass(frozen=True)
class Checked:
    """The result of checking one file.

    ``path``, ``bytes`` and ``mtime_ns`` identify the file on disk, and together with ``ctime_ns`` the result
    in the cache. ``width`` and ``height`` are the size of the upright image in pixels. ``error`` is the
    reason why the file cannot be used, or "", and ``is_lasting`` tells whether it is a fault of the bytes
    rather than of reading them. ``mode``, ``plain`` and ``brightest`` are as in ``image_file.Examined``.
    """

    path: str
    bytes: int
    mtime_ns: int
    ctime_ns: int = -1
    width: int = 0
    height: int = 0
    mode: str = ""
    error: str = ""
    plain: bool = False
    brightest: int | None = None
    is_lasting: bool = True

    @property
    def size(self) -> Size:
        """The (width, height) of the upright image."""
        return self.width, self.height

    def is_unchanged(self) -> bool:
        """Return whether the file on disk is still the one that was checked."""
        try:
            stat = Path(self.path).stat()
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.mtime_ns)

    def is_untouched(self) -> bool:
        """Return whether the file has not even been replaced by one of the same size and modification time.

        A repaired file can have those of the broken one. A file whose name or permissions changed does not
        count as untouched.
        """
        try:
            return self.is_unchanged() and Path(self.path).stat().st_ctime_ns == self.ctime_ns
        except OSError:
            return False


def check_file(path: Path, any_size: bool = False) -> Checked:
    """Decode the file ``path`` completely and return the result of the check.

    ``any_size`` is as in ``image_file.open_image``. Raises UserError if the machine has no file descriptors
    or memory left.
    """
    try:
        before = path.stat()
    except OSError as error:
        return Checked(str(path), -1, -1, error=system_reason(error), is_lasting=False)
    identity = (str(path), before.st_size, before.st_mtime_ns, before.st_ctime_ns)
    try:
        found = examine(path, any_size)
    except BadImageError as bad:
        if bad.is_lack_of_memory:
            raise
        result = Checked(*identity, error=bad.reason, is_lasting=bad.is_lasting)
    else:
        result = Checked(*identity, *found.size, found.mode, plain=found.plain, brightest=found.brightest)
    if not result.is_untouched():  # someone is writing the file, or it has disappeared
        return replace(result, is_lasting=False)
    return result


def _cache_file(any_size: bool = False) -> Path:
    """Return the file with the results of the checks that allow any size, or of those that do not."""
    return cache_folder() / ("checked_images_of_any_size.json" if any_size else "checked_images.json")


def _reader() -> list[object]:
    """Return everything besides a file that the result of a check depends on."""
    settings = [ImageFile.LOAD_TRUNCATED_IMAGES, max_pixels()]
    return [CACHE_VERSION, PIL.__version__, *READABLE, *settings]


_MOST = 2**63 - 1
# The fields of ``Checked``. Only results that last are stored.
_RESULT = record({
    "path": text(),
    **dict.fromkeys(("bytes", "mtime_ns", "ctime_ns", "width", "height"), whole(-1, _MOST)),
    **dict.fromkeys(("mode", "error"), text()),
    "plain": flag,
    "brightest": nothing_or(whole(0, 2**16 - 1)),
    "is_lasting": exactly(True),
})  # fmt: skip


def _read_cache(file: Path) -> dict[str, Checked]:
    try:
        saved = read_json(file)
        record({"reader": exactly(_reader()), "files": list_of(_RESULT)})(saved, "")
    except (OSError, ValueError):
        return {}  # the cache is missing, damaged or another version's: check every file again
    return {result["path"]: Checked(**result) for result in saved["files"]}


def _write_cache(file: Path, records: Iterable[Checked]) -> None:
    text = json.dumps({"reader": _reader(), "files": [asdict(record) for record in records]})
    # If the cache cannot be written, the only effect is that the next run takes a few seconds longer.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(file.parent)
        write_atomically(file, lambda partial: partial.write_text(text))


def _threads() -> int:
    count = os.cpu_count()
    return 1 if count is None else min(8, count)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore the warnings of Pillow, which name no file. They are about metadata, and sizes bounded here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def check_files(
    paths: Sequence[Path],
    progress: Callable[[int, int], None] | None = None,
    any_size: bool = False,
) -> list[Checked]:
    """Check ``paths`` and return the results in order.

    ``any_size`` is as in ``image_file.open_image``. For files that have not changed since an earlier check,
    the result comes from the cache. ``progress`` is called with the number of files checked so far and the
    total, after every file and several times per second while one takes long. An exception that it raises
    ends the checks at once.
    """
    cache_file = _cache_file(any_size)
    cache = _read_cache(cache_file)

    def check(path: Path) -> Checked:
        known = cache.get(str(path.absolute()))
        if known is not None and known.is_untouched():
            return known
        return check_file(path.absolute(), any_size)

    results: list[Checked] = []

    def report() -> bool:
        """Call ``progress``. It ends the checks by an exception, so the result is always False."""
        if progress is not None:
            progress(len(results), len(paths))
        return False

    with _without_warnings(), ReadingThreads(_threads()) as threads:
        for future in [threads.submit(check, path) for path in paths]:
            results.append(result_of(future, report))
            report()
    fresh = {result.path: result for result in results if result.is_lasting}
    if any(cache.get(path) != result for path, result in fresh.items()):
        _write_cache(cache_file, {**cache, **fresh}.values())
    return results
