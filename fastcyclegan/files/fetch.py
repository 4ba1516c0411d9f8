"""Download one file over HTTP: resume broken transfers, and check the file before it gets its name."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fastcyclegan.errors import UserError, one_line, shortened
from fastcyclegan.files.json_file import read_json

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TRIES, TIMEOUT, PIECE = 5, 30, 2**18
# Exceptions raised if a connection breaks or cannot be established.
_BROKEN = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)

Log = Callable[[str], None]
Progress = Callable[[int, int], None]
"""Called with the numbers of bytes received and in total."""
Wait = Callable[[float], None]
"""Called with a number of seconds before the next attempt."""


@dataclass(frozen=True)
class Place:
    """The paths of a download, in one folder.

    ``part`` is what has been received of ``file`` so far, and ``record`` is what a later call needs to know
    of that part to resume it.
    """

    file: Path
    part: Path
    record: Path


def fetch_file(
    url: str,
    place: Place,
    *,
    by_hand: str,
    log: Log,
    progress: Progress,
    wait: Wait,
    check: Callable[[Path], object] = lambda part: None,
) -> Path:
    """Download ``url`` to ``place.file``, resuming from ``place.part`` if it exists, and return the file.

    An existing file is returned as it is. ``check`` is called with the complete part before that gets its
    final name. If it raises UserError, the part is deleted. ``by_hand`` is the option by which a user can
    pass a file that was downloaded by other means.

    Raises UserError if the file cannot be downloaded, and OSError if it cannot be written. What was received
    is kept in both cases, and the next call resumes there.
    """
    if place.file.exists():
        return place.file
    failures = 0
    while True:
        before = _size(place.part)
        try:
            _fetch_once(url, place, progress)
            break
        except http.client.InvalidURL as error:
            raise UserError(f"cannot download {url}: {one_line(error)}") from None
        except _BROKEN as error:
            reason = _why_broken(url, error)
        except ValueError as error:  # of an answer with an odd header
            raise UserError(f"{url}: the server's answer is not valid: {one_line(error)}") from None
        got = _size(place.part)
        failures += 1
        if got > before:
            failures = 0
        if failures == TRIES:
            raise UserError(_unreachable(url, reason, got, by_hand))
        log(f"connection lost after {got / 2**20:.1f} MiB ({reason}); trying again")
        wait(min(2.0**failures, 30))
    _accept(place, check)
    return place.file


def _accept(place: Place, check: Callable[[Path], object]) -> None:
    """Give the complete part its final name if it passes ``check``, and delete it otherwise."""
    try:
        check(place.part)
    except UserError:
        place.part.unlink()
        place.record.unlink(missing_ok=True)
        raise
    place.part.rename(place.file)
    place.record.unlink(missing_ok=True)


def _why_broken(url: str, error: Exception) -> str:
    """Return why a connection broke.

    Raises UserError if the server's response is an error that another attempt would not change.
    """
    if isinstance(error, urllib.error.HTTPError):
        answer = f"the server answered {error.code} {shortened(str(error.reason))}"
        if error.code < 500:
            raise UserError(f"{url}: {answer}") from None
        return answer
    reason = getattr(error, "reason", error)
    if isinstance(reason, BaseException):
        return one_line(reason)
    return shortened(str(reason), 200)


def _unreachable(url: str, reason: str, got: int, by_hand: str) -> str:
    host = urllib.parse.urlsplit(url).hostname
    if got:
        reason += f"; {got / 2**20:.1f} MiB are kept, and the same command resumes from there"
    return (
        f"cannot download from {host}: {reason}. Behind a proxy, set http_proxy and https_proxy; or download"
        f" {url} by other means and pass it as {by_hand}"
    )


def _size(part: Path) -> int:
    if not part.exists():
        return 0
    return part.stat().st_size


def _read_record(file: Path) -> dict[str, Any]:
    """Return what an earlier call recorded about a part, or {} if that is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        metadata = read_json(file)
        version = metadata.get("version") if isinstance(metadata, dict) else None
        if isinstance(version, str) and version.isascii() and version.isprintable():  # it becomes a header
            return dict(metadata)
    return {}


def _fetch_once(url: str, place: Place, progress: Progress) -> None:
    """Download the rest of ``url`` that is not yet in ``place.part``.

    Network exceptions propagate to the caller, and the data received before them stays in the part.
    """
    record = _read_record(place.record)
    start = 0
    if record.get("url") == url and record.get("version"):
        start = _size(place.part)
    headers = {"User-Agent": "fastcyclegan", "Accept-Encoding": "identity"}
    if start:
        # With If-Range, the server sends the rest of the same file, or the whole file that has replaced it.
        headers |= {"Range": f"bytes={start}-", "If-Range": record["version"]}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if start == record.get("total"):
            return
        place.part.unlink()  # longer than the server's file, so it is part of another one
        return _fetch_once(url, place, progress)
    with response:
        if response.status != 206 or not str(response.headers["Content-Range"]).startswith(f"bytes {start}-"):
            start = 0
        total = None
        if response.headers["Content-Length"]:
            total = start + int(response.headers["Content-Length"])
        version = _version(response.headers)
        place.record.write_text(json.dumps({"url": url, "version": version, "total": total}))
        with place.part.open("ab" if start else "wb") as out:
            received = start
            while piece := response.read(PIECE):
                out.write(piece)
                received += len(piece)
                progress(received, received if total is None else total)
    if total is not None and received < total:
        raise ConnectionError(f"received {received} of {total} bytes")


def _version(headers: http.client.HTTPMessage) -> str | None:
    """Return an identifier of a file's version: its ETag or, if that is missing or weak, its date."""
    etag = headers["ETag"]
    if etag and not etag.startswith("W/"):
        return etag
    return headers["Last-Modified"]


@contextlib.contextmanager
def one_at_a_time(file: Path, log: Log, wait: Wait) -> Iterator[None]:
    """Let only one process at a time be in the block for ``file``. The others wait for it.

    This is an advisory lock of the operating system on a file beside ``file``, which stays there. It is free
    as soon as its process is gone. Without such locks, as on Windows and some file systems, nothing waits.
    Raises OSError if the folder cannot be written to.
    """
    descriptor = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(descriptor):
            log(f"{file.name}: waiting for another process, which is downloading it")
            while not _lock(descriptor):
                wait(1.0)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Try to lock the file at ``descriptor``. Return False if another process holds the lock."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # this file system has no locks
            return True
    return True
