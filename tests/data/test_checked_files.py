"""The cache of check results: a result is used until its file changes."""

from __future__ import annotations

import errno
import json
import os
import pwd
import random
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from fastcyclegan.data import background, checked_files
from fastcyclegan.data.checked_files import check_files
from fastcyclegan.data.scan import list_images
from fastcyclegan.errors import StoppedError, UserError
from tests.conftest import write_images
from tests.files.altered_values import altered_json


def test_a_file_is_decoded_once_until_it_changes(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    check = checked_files.check_file

    def counted(path: Path, *options: bool) -> checked_files.Checked:
        decoded.append(path.name)
        return check(path, *options)

    monkeypatch.setattr(checked_files, "check_file", counted)
    paths = list_images(dataset / "trainA")
    first = check_files(paths)
    assert check_files(paths) == first
    assert len(decoded) == 5
    assert (first[0].width, first[0].height, first[0].mode, first[0].plain) == (24, 20, "RGB", True)
    assert first[0].is_unchanged()
    write_images(dataset / "trainA", 1, size=(30, 20))
    assert not first[0].is_unchanged()
    assert check_files(paths)[0].width == 30
    assert len(decoded) == 6
    cache = checked_files._cache_file()
    for damaged in ('{"reader": 2, "files": [{"path"', "[" * 200_000, "null", "7", '"x"', "[{}]"):
        cache.write_text(damaged)  # is ignored
        assert check_files(paths)[1] == first[1]


def _same(found: list[checked_files.Checked], expected: list[checked_files.Checked]) -> bool:
    """Return whether results are equal, except for values that a cache may have with the same right."""
    return [(c.path, c.bytes, c.mtime_ns) for c in found] == [(c.path, c.bytes, c.mtime_ns) for c in expected]


def altered_caches(folder: Path, seeds: range) -> None:
    """Read caches with one alteration each. They are legal or made anew, and never end the scan."""
    paths = list_images(folder)
    cache = checked_files._cache_file()
    cache.unlink(missing_ok=True)
    first = check_files(paths)
    good = json.loads(cache.read_text())
    types = {name: type(value) for name, value in asdict(first[0]).items()}
    for seed in seeds:
        cache.write_bytes(altered_json(random.Random(seed), good))
        found = check_files(paths)
        assert _same(found, first), seed
        for result in found:
            kinds = {name: type(value) for name, value in asdict(result).items()}
            assert {**kinds, "brightest": 0} == {**types, "brightest": 0}, seed


def test_altered_caches_do_not_end_the_scan(dataset: Path) -> None:
    altered_caches(dataset / "trainA", range(100))


@pytest.mark.slow
def test_many_altered_caches_do_not_end_the_scan(dataset: Path) -> None:
    altered_caches(dataset / "trainA", range(1000, 6000))


def test_a_cache_whose_records_have_wrong_values_is_made_anew(dataset: Path) -> None:
    paths, cache = list_images(dataset / "trainA"), checked_files._cache_file()
    cache.unlink(missing_ok=True)
    first = check_files(paths)
    good = json.loads(cache.read_text())
    for name, value in {
        "width": "24",
        "height": None,
        "plain": 1,
        "brightest": 10**9,
        "error": ["x"],
    }.items():
        records = [{**record, name: value} for record in good["files"]]
        cache.write_text(json.dumps({**good, "files": records}))
        assert check_files(paths) == first, name
        assert json.loads(cache.read_text()) == good, name


def test_a_folder_in_place_of_the_cache_does_not_matter(dataset: Path) -> None:
    paths = list_images(dataset / "trainA")
    first, cache = check_files(paths), checked_files._cache_file()
    cache.unlink()
    cache.mkdir()
    assert check_files(paths) == first
    cache.rmdir()


def test_an_exception_of_progress_ends_the_checks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[Path] = []

    def slow(path: Path, *options: bool) -> checked_files.Checked:
        checks.append(path)
        time.sleep(0.01)
        return checked_files.Checked(str(path), -1, -1)

    def stop(done: int, total: int) -> None:
        assert total == 1000
        if done == 10:
            raise StoppedError

    monkeypatch.setattr(checked_files, "check_file", slow)
    with pytest.raises(StoppedError):
        check_files([Path(f"/{n}.png") for n in range(1000)], stop)
    assert len(checks) < 100


def test_a_file_that_hangs_does_not_keep_progress_from_being_called(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang, check = threading.Event(), checked_files.check_file
    paths = list_images(dataset / "trainA")

    def hanging(path: Path, *options: bool) -> checked_files.Checked:
        if path.name == paths[2].name:
            hang.wait()
        return check(path)

    calls: list[tuple[int, int]] = []

    def stop(*numbers: int) -> None:
        calls.append(numbers)
        if len(calls) == 4:
            raise StoppedError

    monkeypatch.setattr(checked_files, "check_file", hanging)
    monkeypatch.setattr(background, "PATIENCE", 0.1)
    started = time.monotonic()
    with pytest.raises(StoppedError):
        check_files(paths, stop)
    assert calls == [(1, 5), (2, 5), (2, 5), (2, 5)]
    assert time.monotonic() - started < 60
    hang.set()


def test_a_lack_of_file_descriptors_is_not_a_fault_of_the_file(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(UserError, match=r"000.png cannot be read: Too many open files"):
        check_files(list_images(dataset / "trainA"))


def broken(dataset: Path) -> Path:
    path = dataset / "trainA" / "000.png"
    path.write_bytes(path.read_bytes()[:-60])
    return path


def errors(dataset: Path) -> list[str]:
    return [check.error for check in check_files(list_images(dataset / "trainA"))]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOENT])
def test_an_error_of_reading_is_not_remembered(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The file has the same size and times afterwards, but nothing is known about its bytes."""

    def fails(path: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", fails)
        assert all(errors(dataset))
    assert errors(dataset) == [""] * 5


def test_a_lack_of_memory_is_not_remembered(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's decoders report it in several ways."""

    def no_memory(*arguments: object) -> None:
        raise MemoryError

    for error in (
        MemoryError(),
        OSError(errno.ENOMEM, "x"),
        OSError("out of memory error when reading image"),
    ):

        def fails(*arguments: object, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr("PIL.ImageFile.ImageFile.load", fails)
            patched.setattr("fastcyclegan.data.image_file.np.empty", no_memory)
            with pytest.raises(UserError, match="cannot be read: out of memory"):
                errors(dataset)
        assert errors(dataset) == [""] * 5
        checked_files._cache_file().unlink()


def test_a_fault_of_the_bytes_is_remembered(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(dataset)
    first = errors(dataset)
    assert "truncated" in first[0]
    monkeypatch.setattr(checked_files, "check_file", pytest.fail)
    assert errors(dataset) == first


def test_a_repaired_file_of_the_same_size_and_time_is_checked_again(dataset: Path) -> None:
    path = dataset / "trainA" / "000.png"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    before = path.stat()
    assert errors(dataset)[0]
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as cp -p and rsync -t do
    assert errors(dataset) == [""] * 5


def test_what_is_written_during_the_check_is_not_remembered(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = broken(dataset)
    read_bytes = Path.read_bytes

    def written_meanwhile(file: Path) -> bytes:
        data = read_bytes(file)
        if file.name == path.name:
            file.write_bytes(data + b"more")
        return data

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", written_meanwhile)
        assert "truncated" in errors(dataset)[0]
    decoded: list[str] = []
    check = checked_files.check_file
    monkeypatch.setattr(
        checked_files, "check_file", lambda *file: decoded.append(file[0].name) or check(*file)
    )
    errors(dataset)
    assert decoded == ["000.png"]


@pytest.mark.parametrize(
    ("target", "value"),
    [("PIL.__version__", "9.9"), ("PIL.Image.MAX_IMAGE_PIXELS", 10**6)],
    ids=["another version of Pillow", "another limit"],
)
def test_results_of_another_decoder_are_not_used(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, target: str, value: object
) -> None:
    errors(dataset)
    decoded: list[str] = []
    check = checked_files.check_file
    monkeypatch.setattr(
        checked_files, "check_file", lambda *file: decoded.append(file[0].name) or check(*file)
    )
    errors(dataset)
    assert decoded == []
    monkeypatch.setattr(target, value)
    errors(dataset)
    assert len(decoded) == 5


def test_warnings_of_pillow_are_not_printed(dataset: Path, recwarn: pytest.WarningsRecorder) -> None:
    """They name no file. What they warn of is either bounded here or has no effect."""
    exif = Image.Exif()
    exif[0x0112] = 3
    path = dataset / "trainA" / "exif.jpg"
    Image.new("RGB", (24, 20)).save(path, exif=exif.tobytes()[:-8])
    errors(dataset)
    assert [str(warning.message) for warning in recwarn] == []


def test_temporary_files_of_killed_processes_are_removed(dataset: Path) -> None:
    folder = checked_files._cache_file().parent
    folder.mkdir(parents=True, exist_ok=True)
    left = folder / ".checked_images.json.999999999.partial"
    left.touch()
    os.utime(left, (0, 0))
    check_files(list_images(dataset / "trainA"))
    assert not left.exists()


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run as a user without a home folder or a name. Returns the folder for temporary files."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_results_of_a_user_without_a_home_are_kept_in_the_temporary_folder(
    dataset: Path, no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert errors(dataset) == [""] * 5
    assert (no_home / f"fastcyclegan-{os.getuid()}" / "checked_images.json").exists()
    monkeypatch.setattr(checked_files, "check_file", pytest.fail)
    assert errors(dataset) == [""] * 5


@pytest.mark.parametrize("blocked", ["XDG_CACHE_HOME", "HOME"])
def test_a_cache_folder_that_cannot_be_made_is_not_needed(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv(blocked, str(tmp_path / "file"))
    assert errors(dataset) == [""] * 5


def test_the_cache_is_a_file_in_the_cache_folder(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    errors(dataset)
    assert [path.name for path in (tmp_path / "c" / "fastcyclegan").iterdir()] == ["checked_images.json"]


def test_verdicts_about_the_size_hold_for_their_own_setting(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is too large stays so without permission, and good with it, whatever was checked before."""
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 200)
    paths = list_images(dataset / "trainA")
    decoded: list[str] = []
    check = checked_files.check_file
    monkeypatch.setattr(
        checked_files, "check_file", lambda *file: decoded.append(file[0].name) or check(*file)
    )
    for _ in range(2):
        refused, allowed = check_files(paths), check_files(paths, any_size=True)
        assert all("it has more than 400 pixels" in checked.error for checked in refused)
        assert not any(checked.error or checked.plain for checked in allowed)
        assert {(checked.width, checked.height) for checked in allowed} == {(24, 20)}
    assert len(decoded) == 2 * len(paths)  # the second results come from the caches
