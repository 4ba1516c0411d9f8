"""Download a file from a local server that drops connections, changes its file or answers with errors."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.files.fetch import TRIES, Place, fetch_file, one_at_a_time
from tests.file_server import Server, serving
from tests.training.limits import no_file_longer_than

CONTENT = random.Random(0).randbytes(20_000)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(CONTENT, "toys.bin") as state:
        yield state


def place(folder: Path) -> Place:
    return Place(folder / "toys.bin", folder / "toys.part", folder / "toys.json")


def run(server: Server, folder: Path, logged: list[str] | None = None, **options: object) -> bytes:
    """Download the file, and return its contents if that leaves nothing else."""
    folder.mkdir(exist_ok=True)
    logged = [] if logged is None else logged
    given: dict = {"progress": lambda received, total: None, "wait": lambda seconds: None, **options}
    url = f"{server.url}/toys.bin"
    file = fetch_file(url, place(folder), by_hand="--toys FILE", log=logged.append, **given)
    assert [file] == [path for path in folder.iterdir() if path.suffix != ".lock"]
    return file.read_bytes()


def break_off(server: Server, folder: Path) -> None:
    """Download a part of the file."""
    server.breaks = [1000] + [0] * TRIES
    with pytest.raises(UserError):
        run(server, folder)
    server.requested.clear()


def test_resumes_after_broken_connections(server: Server, tmp_path: Path) -> None:
    server.breaks = [1000, 0, 0, 5000]
    logged: list[str] = []
    waited: list[float] = []
    assert run(server, tmp_path, logged, wait=waited.append) == CONTENT
    assert server.requested == [None, "bytes=1000-", "bytes=1000-", "bytes=1000-", "bytes=6000-"]
    assert logged == [
        f"connection lost after 0.0 MiB (received {got} of 20000 bytes); trying again"
        for got in (1000, 1000, 1000, 6000)
    ]
    assert waited == [1, 2, 4, 1]  # progress starts the row of failures anew


def test_keeps_what_was_received_and_resumes_it_later(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path)
    assert (tmp_path / "toys.part").read_bytes() == CONTENT[:1000]
    received: list[tuple[int, int]] = []
    assert run(server, tmp_path, progress=lambda *numbers: received.append(numbers)) == CONTENT
    assert server.requested == ["bytes=1000-"]
    assert received[-1] == (20_000, 20_000)


def test_an_existing_file_is_not_downloaded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toys.bin").write_bytes(b"mine")
    assert run(server, tmp_path, check=None) == b"mine"
    assert server.requested == []


def test_downloads_a_changed_file_from_scratch(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path)
    server.content, server.version = CONTENT[::-1], '"2"'
    assert run(server, tmp_path) == CONTENT[::-1]


def test_does_not_resume_the_part_of_another_address(server: Server, tmp_path: Path) -> None:
    break_off(server, tmp_path)
    server.url += "/else"
    server.content = CONTENT[::-1]
    assert run(server, tmp_path) == CONTENT[::-1]


@pytest.mark.parametrize(
    "change", [{"ranges": False}, {"version": None}], ids=["no ranges", "no version to resume from"]
)
def test_starts_over_if_the_server_cannot_resume(
    server: Server, tmp_path: Path, change: dict[str, object]
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    server.breaks = [1000, 2000]
    assert run(server, tmp_path) == CONTENT


def test_uses_a_part_that_is_complete(server: Server, tmp_path: Path) -> None:
    """A part that is complete, because the process was killed just before renaming it, is used."""
    break_off(server, tmp_path)
    (tmp_path / "toys.part").write_bytes(CONTENT)
    assert run(server, tmp_path) == CONTENT
    break_off(server, tmp_path / "other")
    (tmp_path / "other" / "toys.part").write_bytes(CONTENT + b"more")  # longer than the file
    assert run(server, tmp_path / "other") == CONTENT


def test_a_part_is_checked_before_it_gets_its_name(server: Server, tmp_path: Path) -> None:
    checked: list[bytes] = []

    def refuse(part: Path) -> None:
        assert not (tmp_path / "toys.bin").exists()
        checked.append(part.read_bytes())
        raise UserError("not the file that was expected")

    with pytest.raises(UserError, match="not the file that was expected"):
        run(server, tmp_path, check=refuse)
    assert checked == [CONTENT]
    assert list(tmp_path.iterdir()) == []  # so that the next call does not resume it
    assert run(server, tmp_path, check=lambda part: checked.append(part.read_bytes())) == CONTENT
    assert checked == [CONTENT, CONTENT]


def test_reports_errors_of_the_server(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match=r"/somewhere/toys.bin: the server answered 404"):
        run(server, tmp_path)
    assert len(server.requested) == 1
    server.status = 503
    with pytest.raises(UserError, match="the server answered 503"):
        run(server, tmp_path)
    assert len(server.requested) == 1 + TRIES


def test_an_unreachable_server(server: Server, tmp_path: Path) -> None:
    server.url = "http://127.0.0.1:9"
    with pytest.raises(UserError) as error:
        run(server, tmp_path)
    assert str(error.value).startswith("cannot download from 127.0.0.1: ")
    assert str(error.value).endswith(
        "refused. Behind a proxy, set http_proxy and https_proxy; or download http://127.0.0.1:9/toys.bin by"
        " other means and pass it as --toys FILE"
    )


@pytest.mark.parametrize(("answer", "message"), [
    (b"HTTP/1.1 404 " + b"Nothing" * 999 + b"\r\n\r\n", "the server answered 404 Nothing"),
    (b"HTTP/1.1 503 " + b"Nothing" * 999 + b"\r\n\r\n", "the server answered 503 Nothing"),
    (b"Nothing" * 999 + b"\r\n\r\n", "cannot download from 127.0.0.1: Nothing"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\n", "the server's answer is not valid: invalid literal"),
    (b"HTTP/1.1 302 OK\r\nLocation: http://[zz/\r\n\r\n", "the server's answer is not valid: Invalid IPv6"),
], ids=["final", "temporary", "no status", "length", "location"])  # fmt: skip
def test_reports_odd_answers_in_one_short_line(
    tmp_path: Path, server: Server, answer: bytes, message: str
) -> None:
    server.answer = answer
    with pytest.raises(UserError, match=message) as error:
        run(server, tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("record", [
    "[]", '{"url": 1}', '{"version": 5}', "{", '"x"',
    "[" * 100_000, '{"version": "a\\nb"}', '{"version": "\u00e9"}',
])  # fmt: skip
def test_a_damaged_record_of_a_download_is_ignored(server: Server, tmp_path: Path, record: str) -> None:
    (tmp_path / "toys.part").write_bytes(b"old")
    record = record.replace('"version"', f'"url": "{server.url}/toys.bin", "version"')
    (tmp_path / "toys.json").write_text(record)
    assert run(server, tmp_path) == CONTENT


def test_a_full_disk_leaves_a_part_that_is_resumed(server: Server, tmp_path: Path) -> None:
    with no_file_longer_than(5000), pytest.raises(OSError, match="too large"):
        run(server, tmp_path)
    assert not (tmp_path / "toys.bin").exists()
    server.requested.clear()
    assert run(server, tmp_path) == CONTENT
    assert server.requested == ["bytes=5000-"]


def test_the_second_process_waits_for_the_first(server: Server, tmp_path: Path) -> None:
    """The second one finds the file. Each call opens the lock's file anew, so a thread is like a process."""
    started, logged, found = threading.Event(), [], []
    server.breaks = [1000]

    def download(wait: object) -> None:
        with one_at_a_time(tmp_path / "toys.bin", logged.append, lambda seconds: started.set()):
            found.append(run(server, tmp_path, wait=wait))

    # The first waits after its broken connection until the second waits for the lock.
    second = threading.Thread(target=download, args=(None,))

    def let_the_second_start(seconds: float) -> None:
        second.start()
        assert started.wait(60)

    download(let_the_second_start)
    second.join()
    assert found == [CONTENT, CONTENT]
    assert server.requested == [None, "bytes=1000-"]
    assert logged == ["toys.bin: waiting for another process, which is downloading it"]
