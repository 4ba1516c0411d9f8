"""Download a dataset from a local server that drops connections, and unpack its archive.

Archives that must not be unpacked are tested as well. ``tests/files/test_fetch.py`` tests downloads further.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcyclegan.cli import download_dataset
from fastcyclegan.data.download import DATASETS, download
from fastcyclegan.errors import UserError
from fastcyclegan.files.fetch import TRIES
from tests.file_server import Server, serving


def packed(names: dict[str, bytes] | None = None) -> bytes:
    """Return the bytes of a zip archive of a small dataset, or of ``names``, which maps names to contents."""
    if names is None:
        names = {}
        rng = np.random.default_rng(0)
        for part, count in {"trainA": 3, "trainB": 4, "testA": 1, "testB": 1}.items():
            for n in range(count):
                out = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(out, format="PNG")
                names[f"toys/{part}/{n}.png"] = out.getvalue()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(packed(), "toys.zip") as state:
        yield state


def run(server: Server, output: Path, logged: list[str] | None = None, **options: object) -> list[str]:
    logged = [] if logged is None else logged
    download("toys", output, server=server.url, log=logged.append, wait=lambda seconds: None, **options)
    return logged


def counts(folder: Path) -> dict[str, int]:
    return {part.name: len(list(part.iterdir())) for part in sorted(folder.iterdir())}


WHOLE = {"testA": 1, "testB": 1, "trainA": 3, "trainB": 4}


def test_downloads_unpacks_and_counts(server: Server, tmp_path: Path) -> None:
    logged = run(server, tmp_path / "datasets")
    assert counts(tmp_path / "datasets" / "toys") == WHOLE
    assert f"{tmp_path / 'datasets' / 'toys' / 'trainB'}: 4 images" in logged
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == [
        "toys"
    ]  # no archive, no metadata, nothing partial
    with pytest.raises(UserError, match=r"toys already exists; remove it to download it again"):
        run(server, tmp_path / "datasets")


def test_resumes_after_broken_connections(server: Server, tmp_path: Path) -> None:
    server.breaks = [1000, 0, 0, 5000]
    logged = run(server, tmp_path, keep_archive=True)
    assert server.requested == [None, "bytes=1000-", "bytes=1000-", "bytes=1000-", "bytes=6000-"]
    assert (tmp_path / "toys.zip").read_bytes() == server.content
    assert sum("connection lost" in line for line in logged) == 4
    assert counts(tmp_path / "toys") == WHOLE


def test_keeps_a_partial_download_and_resumes_it_later(server: Server, tmp_path: Path) -> None:
    server.breaks = [1000] + [0] * TRIES
    with pytest.raises(
        UserError,
        match=r"cannot download from 127.0.0.1: .*0.0 MiB are kept.*Behind a proxy.*--archive toys.zip",
    ):
        run(server, tmp_path)
    assert not (tmp_path / "toys").exists()
    server.requested.clear()
    run(server, tmp_path)
    assert server.requested == ["bytes=1000-"]
    assert counts(tmp_path / "toys") == WHOLE


def test_reports_an_unreachable_server(tmp_path: Path, server: Server) -> None:
    server.url = "http://127.0.0.1:9"
    with pytest.raises(
        UserError,
        match=r"cannot download from 127.0.0.1: .*refused.*Behind a proxy, set http_proxy and https_proxy",
    ):
        run(server, tmp_path)


@pytest.mark.parametrize("address", [
    "foo", "foo bar", "//h", "127.0.0.1:9", "http://", "http:///x", "http://foo bar", "http://[::1", "http://[zz]",
    "http://h:99999", "http://h:-1", "http://h:0", "http://h:x", "http://...", "http://a..b", "http://h/a\nb",
    "http://" + "a" * 300, "http://user:word@h", "file:///tmp", "ftp://h", "data:abc", "http://%00 ",
])  # fmt: skip
def test_what_is_no_address_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    assert download_dataset(["toys", "--output", str(tmp_path / "new"), "--server", address]) == 2
    error = capsys.readouterr().err
    assert "--server must be the address of a folder, such as http://" in error
    assert (error.count("\n"), len(error) < 250) == (1, True)
    assert not (tmp_path / "new").exists()


def test_an_address_with_unusual_characters(server: Server, tmp_path: Path) -> None:
    server.url += "/\u00e9 \u0436"
    run(server, tmp_path)
    assert counts(tmp_path / "toys") == WHOLE


@pytest.mark.parametrize(
    "name",
    ["../out.png", "/etc/out.png", "toys/../../out.png", "C:\\out.png", "..\\out.png", "\\\\host\\out.png"],
)
def test_rejects_members_outside_the_folder(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "in" / "a.zip"
    archive.parent.mkdir()
    archive.write_bytes(packed({"toys/trainA/0.png": b"x", name: b"evil"}))
    with pytest.raises(UserError, match=r"a.zip: not unpacked because its member .* leads outside"):
        download("toys", tmp_path / "in" / "datasets", archive=archive)
    assert list((tmp_path / "in" / "datasets").iterdir()) == []
    assert archive.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("names", "message"), [
    (["a/0.png", "a/0.png"], "'a/0.png' and 'a/0.png' have the same place"),
    (["a/0.png", "a//0.png"], "'a/0.png' and 'a//0.png' have the same place"),
    (["a/./0.png", "a/0.png"], "'a/./0.png' and 'a/0.png' have the same place"),
    (["a/0.png", "a\\0.png"], r"'a/0.png' and 'a\\\\0.png' have the same place"),
    (["a/0.png", "a/0.png\0.txt"], "'a/0.png' and 'a/0.png' have the same place"),
    (["a", "a/0.png"], "'a' is a file and a folder"),
    (["a/0.png", "a/0.png/"], "'a/0.png' is a file and a folder"),
    (["."], "'.' is a file and a folder"),
    ([""], "'' is a file and a folder"),
], ids=["twice", "slash", "dot", "backslash", "zero", "folder", "empty", ".", "none"])  # fmt: skip
def test_rejects_members_that_meet(tmp_path: Path, names: list[str], message: str) -> None:
    """Otherwise, the later one replaces the other, or fails halfway, depending on the system."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("trainA/0.png", b"x")
        for name in names:
            info = zipfile.ZipInfo("x" * len(name))
            info.filename = name  # the constructor would cut it at a zero byte
            archive.writestr(info, b"" if name.endswith("/") else b"x")
    with pytest.raises(UserError, match=rf"a.zip: not unpacked because its members? {message}"):
        download("toys", tmp_path / "datasets", archive=tmp_path / "a.zip")
    assert list((tmp_path / "datasets").iterdir()) == []


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_accepts_names_that_do_not_meet(tmp_path: Path) -> None:
    """Folders are listed more than once in many archives. Names that differ in case are different."""
    names = ["toys/", "toys/", "toys/trainA/", "toys/trainA/x.txt", "toys/trainA/X.txt", "toys/trainA.txt"]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    download("toys", tmp_path / "datasets", archive=tmp_path / "a.zip", log=lambda text: None)
    assert len(list((tmp_path / "datasets" / "toys" / "trainA").iterdir())) == 2


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rejects_damaged_compressed_data(tmp_path: Path, method: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr("trainA/0.txt", bytes(range(256)) * 50)
    data = bytearray(out.getvalue())
    start = 30 + len("trainA/0.txt")
    for place in range(start, start + 60):
        data[place] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"a.zip: not a complete zip archive \(.+\); delete it"):
        download("toys", tmp_path / "datasets", archive=tmp_path / "a.zip")
    assert list((tmp_path / "datasets").iterdir()) == []


def test_rejects_names_that_are_not_text(tmp_path: Path) -> None:
    data = packed({"trainA/\u00e9.png": b"x"}).replace("\u00e9".encode(), b"\xff\xff")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"a.zip: not a complete zip archive"):
        download("toys", tmp_path / "datasets", archive=tmp_path / "a.zip")


def test_rejects_links(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed_:
        link = zipfile.ZipInfo("toys/trainA")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed_.writestr(link, "/etc")
    with pytest.raises(UserError, match="leads outside the folder"):
        download("toys", tmp_path / "datasets", archive=archive)


@pytest.mark.parametrize(("content", "message"), [
    (b"<html>a proxy's page</html>", r"a.zip: not a complete zip archive .*delete it"),
    (packed()[:-300], r"a.zip: not a complete zip archive"),
    (packed().replace(b"IHDR", b"JHDR"), r"a.zip: not a complete zip archive .*CRC"),
    (
        packed({"toys/readme.txt": b"x"}),
        r"a.zip: not a dataset: it contains none of trainA, trainB, testA, testB",
    ),
    (packed({}), r"a.zip: not a dataset: it contains none of trainA"),
    (
        packed({"trainA/" + 2000 * "x/" + "0.png": b"x"}),
        r"a.zip: not unpacked because its member 'trainA/x/x/.* is in 2001 folders",
    ),
], ids=["a page", "truncated", "damaged", "something else", "empty", "deep"])  # fmt: skip
def test_rejects_unusable_archives(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=message):
        download("toys", tmp_path / "datasets", archive=tmp_path / "a.zip")
    assert list((tmp_path / "datasets").iterdir()) == []


def test_an_archive_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "folder.zip").mkdir()
    for name in ("pipe.zip", "folder.zip"):
        with pytest.raises(UserError, match=rf"{name}: not a file, but --archive must be a zip file"):
            download("toys", tmp_path / "datasets", archive=tmp_path / name)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", ".hidden", "n\n", "\udcff", "a\0"])
def test_a_name_that_is_no_folder_name_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(packed())
    for options in ({"server": server.url}, {"archive": tmp_path / "a.zip"}):
        with pytest.raises(UserError, match="the name of a dataset must be a plain folder name"):
            download(name, tmp_path / "datasets", **options)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_members_with_backslashes_are_in_folders(tmp_path: Path) -> None:
    """Old programs for Windows write them."""
    with zipfile.ZipFile(io.BytesIO(packed())) as whole, zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in whole.namelist():
            archive.writestr(name.replace("/", "\\"), whole.read(name))
    download("toys", tmp_path / "datasets", archive=tmp_path / "a.zip", log=lambda text: None)
    assert counts(tmp_path / "datasets" / "toys") == WHOLE


def test_accepts_other_layouts_inside_the_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(packed())) as whole:
        files = {name.removeprefix("toys/"): whole.read(name) for name in whole.namelist()}
    for n, prefix in enumerate(["", "another_name/", "__MACOSX/"]):
        (tmp_path / "a.zip").write_bytes(
            packed({**{f"{prefix}{name}": data for name, data in files.items()}, **(files if n == 2 else {})})
        )
        download("toys", tmp_path / str(n), archive=tmp_path / "a.zip", log=lambda text: None)
        assert counts(tmp_path / str(n) / "toys") == WHOLE


def test_download_command(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert download_dataset(["toys", "--output", str(tmp_path), "--server", server.url]) == 0
    out = capsys.readouterr().out
    assert f"to train on it: python scripts/train.py --compile --dataroot {tmp_path / 'toys'}" in out
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("horse2zebra/trainA/0.png", b"broken")
    assert (
        download_dataset(["horse2zebra", "--output", str(tmp_path), "--archive", str(tmp_path / "b.zip")])
        == 1
    )
    out = capsys.readouterr().out
    assert "horse2zebra/trainA: 1 images (the original has 1,067), 1 broken" in out
    assert "0.png: not an image in one of the supported formats" in out
    assert (tmp_path / "b.zip").exists()
    for args, message in (
        ([], "no dataset given"),
        (["zebra2horse"], "not one of the CycleGAN authors' datasets"),
        (["cityscapes"], "its licence"),
        (
            ["horse2zebra", "--output", str(tmp_path / "new"), "--archive", str(tmp_path / "none.zip")],
            "none.zip: no such file",
        ),
    ):
        assert download_dataset(args) == 2
        assert message in capsys.readouterr().err


def test_lists_all_datasets(capsys: pytest.CaptureFixture[str]) -> None:
    assert download_dataset(["--list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in DATASETS)
    assert len(DATASETS) == 11


@pytest.mark.parametrize("length", [241, 249, 251, 255])
def test_every_name_of_a_folder_can_be_downloaded(server: Server, tmp_path: Path, length: int) -> None:
    """The names of the archive, of its parts and of the temporary folder are longer than the dataset's."""
    name = "n" * length
    server.breaks = [1000]
    server.file = f"{name}.zip"
    download(name, tmp_path, server=server.url, log=lambda text: None, wait=lambda seconds: None)
    assert counts(tmp_path / name) == WHOLE
    assert [path.name for path in tmp_path.iterdir()] == [name]
