"""Download the CycleGAN authors' datasets: unpack their archives safely, and check every image."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import struct
import time
import urllib.parse
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from fastcyclegan.data.checked_files import Checked, check_files
from fastcyclegan.data.scan import find_files
from fastcyclegan.errors import UserError, one_line, shortened
from fastcyclegan.files.fetch import Log, Place, Progress, Wait, fetch_file
from fastcyclegan.settings.checks import is_folder_name
from fastcyclegan.tensor_files import fitting_name

SERVER = "http://efrosgans.eecs.berkeley.edu/cyclegan/datasets"
FOLDERS = ("trainA", "trainB", "testA", "testB")
# Exceptions raised for a damaged archive. ValueError: a member's name is not text.
_DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Dataset:
    """One of the CycleGAN authors' datasets.

    ``domains`` describes its two domains, and ``mib`` is the size of the download in MiB. ``counts`` are the
    numbers of images in trainA, trainB, testA and testB.
    """

    domains: str
    mib: int | None = None
    counts: tuple[int, int, int, int] | None = None


DATASETS = {
    "apple2orange": Dataset("apples and oranges", 75, (995, 1019, 266, 248)),
    "summer2winter_yosemite": Dataset("Yosemite in summer and in winter", 127, (1231, 962, 309, 238)),
    "horse2zebra": Dataset("horses and zebras", 111, (1067, 1334, 120, 140)),
    "monet2photo": Dataset("Monet's paintings and photographs", 291, (1072, 6287, 121, 751)),
    "cezanne2photo": Dataset("Cezanne's paintings and photographs", 267, (525, 6287, 58, 751)),
    "ukiyoe2photo": Dataset("ukiyo-e prints and photographs", 279, (562, 6287, 263, 751)),
    "vangogh2photo": Dataset("van Gogh's paintings and photographs", 292, (400, 6287, 400, 751)),
    "maps": Dataset("aerial photographs and maps", 1413, (1096, 1096, 1098, 1098)),
    "facades": Dataset("facades and their labels", 34, (400, 400, 106, 106)),
    "iphone2dslr_flower": Dataset("flowers by phone and by camera", 324, (1812, 3325, 569, 480)),
    "ae_photos": Dataset("photographs"),
}
ELSEWHERE = {"cityscapes": "its licence forbids redistribution; get it from cityscapes-dataset.com"}

# A dataset needs three. Python's own functions for folders are recursive.
MOST_FOLDERS = 50


def download(
    name: str,
    output: Path,
    *,
    server: str = SERVER,
    archive: Path | None = None,
    keep_archive: bool = False,
    log: Log = print,
    progress: Progress = lambda received, total: None,
    wait: Wait = time.sleep,
) -> list[Checked]:
    """Download dataset ``name`` into ``output``/``name`` and return its bad images.

    If ``archive`` is given, that zip file is unpacked and nothing is downloaded. A partial download is kept,
    and the next call resumes it. Raises UserError for problems that the user can fix; nothing is unpacked in
    that case.
    """
    if name in ELSEWHERE:
        raise UserError(f"{name}: {ELSEWHERE[name]}")
    if not is_folder_name(name):
        raise UserError(f"the name of a dataset must be a plain folder name, got {shortened(repr(name))}")
    if name not in DATASETS and archive is None and server == SERVER:
        raise UserError(f"{name}: not one of the CycleGAN authors' datasets ({', '.join(DATASETS)})")
    url = _address(server, name)
    target = output / name
    if target.exists():
        raise UserError(
            f"{target} already exists; remove it to download it again, or check it with check_dataset.py"
        )
    output.mkdir(parents=True, exist_ok=True)
    if archive is not None:
        unpack(archive, target)
    else:
        place = _place(output / fitting_name(name, ".zip", output))
        by_hand = f"--archive {place.file.name}"
        fetched = fetch_file(url, place, by_hand=by_hand, log=log, progress=progress, wait=wait)
        unpack(fetched, target)
        if not keep_archive:
            fetched.unlink()
    return _report(name, target, log)


def _address(server: str, name: str) -> str:
    """Return the address of the archive of dataset ``name``.

    Raises UserError unless ``server`` is the address of a folder of a web server.
    """
    is_address = server.isprintable()
    try:
        parts = urllib.parse.urlsplit(server)
        host = str(parts.hostname).encode("idna").decode()
        is_address &= parts.port != 0 and parts.username is None
    except ValueError:  # brackets without an IPv6 address, a port that is no number, a host that is no name
        is_address = False
    if not is_address or parts.scheme not in ("http", "https") or not parts.hostname or " " in host:
        raise UserError(
            f"--server must be the address of a folder, such as {SERVER}, got {shortened(repr(server))}"
        )
    path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~")
    folder = urllib.parse.urlunsplit(parts._replace(path=path))
    return f"{folder}/{urllib.parse.quote(name)}.zip"


def _place(file: Path) -> Place:
    """Return the paths of the download of ``file``, whose name may be as long as a name can be."""
    part = file.with_name(fitting_name(file.name, ".part", file.parent))
    return Place(file, part, part.with_name(fitting_name(part.name, ".json", part.parent)))


def _is_inside(info: zipfile.ZipInfo) -> bool:
    """Return whether a member of an archive stays inside the folder that it is unpacked into, on any system.

    A link never counts as inside.
    """
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    windows = PureWindowsPath(info.filename)
    if is_link or windows.drive or windows.root:
        return False
    return ".." not in PurePosixPath(info.filename.replace("\\", "/")).parts


def unpack(archive: Path, target: Path) -> None:
    """Unpack the zip file of a dataset into the new folder ``target``, either completely or not at all.

    Raises UserError for an archive that is damaged or malicious.
    """
    partial = target.with_name(fitting_name(f".{target.name}", ".partial", target.parent))
    shutil.rmtree(partial, ignore_errors=True)
    if archive.exists() and not archive.is_file():  # reading a pipe could block forever
        raise UserError(f"{archive}: not a file, but --archive must be a zip file")
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [info for info in packed.infolist() if not info.filename.startswith("__MACOSX/")]
            _check_members(archive, members, target.parent)
            for info in members:  # some programs for Windows write its separator
                info.filename = info.filename.replace("\\", "/")
            partial.mkdir()
            packed.extractall(partial, members)
        _root(partial, target.name, archive).rename(target)
    except FileNotFoundError:
        raise UserError(f"{archive}: no such file") from None
    except (*_DAMAGED, OSError) as error:
        # A damaged offset is an invalid argument, and the error of bzip2's decompressor has no number.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # for example a full disk
        raise UserError(
            f"{archive}: not a complete zip archive ({one_line(error)}); delete it and download it again"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_members(archive: Path, members: Sequence[zipfile.ZipInfo], folder: Path) -> None:
    """Raise UserError if ``members`` would leave their folder, or need more space than ``folder`` has."""
    size = 0
    for info in members:
        if not _is_inside(info):
            member = shortened(repr(info.filename))
            raise UserError(f"{archive}: not unpacked because its member {member} leads outside the folder")
        size += info.file_size
    _check_places(archive, members)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{archive}: needs {size / 2**20:,.0f} MiB when unpacked, but only {free / 2**20:,.0f} MiB are"
            f" free in {folder}"
        )


def _check_places(archive: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise UserError if two of ``members`` would be unpacked to the same place, on any system."""
    files: dict[tuple[str, ...], str] = {}
    folders: set[tuple[str, ...]] = {()}
    for info in members:
        place = PurePosixPath(info.filename.replace("\\", "/")).parts
        depth = len(place) - 1
        if depth > MOST_FOLDERS:
            member = shortened(repr(info.filename))
            raise UserError(f"{archive}: not unpacked because its member {member} is in {depth} folders")
        folders.update(place[:depth] for depth in range(1, len(place)))
        if info.filename.endswith("/"):  # is_dir fails without a name
            folders.add(place)
            continue
        if place in files:
            both = f"{shortened(repr(files[place]))} and {shortened(repr(info.filename))}"
            raise UserError(f"{archive}: not unpacked because its members {both} have the same place")
        files[place] = info.filename
    for place, name in files.items():
        if place in folders:
            member = shortened(repr(name))
            raise UserError(f"{archive}: not unpacked because its member {member} is a file and a folder")


def _root(unpacked: Path, name: str, archive: Path) -> Path:
    """Return the unpacked folder that contains trainA, trainB, testA or testB.

    It is the subfolder with the dataset's name, the only subfolder, or ``unpacked`` itself. Raises UserError
    if none of them qualifies.
    """
    candidates = [unpacked / name]
    inside = [path for path in unpacked.iterdir() if path.is_dir()]
    if len(inside) == 1:
        candidates += inside
    for folder in (*candidates, unpacked):
        if any((folder / part).is_dir() for part in FOLDERS):
            return folder
    raise UserError(f"{archive}: not a dataset: it contains none of {', '.join(FOLDERS)}")


def _report(name: str, target: Path, log: Log) -> list[Checked]:
    """Check every image, log the numbers of images and the problems, and return the bad images."""
    bad: list[Checked] = []
    expected: dict[str, int] = {}
    dataset = DATASETS.get(name)
    if dataset is not None and dataset.counts is not None:
        expected = dict(zip(FOLDERS, dataset.counts, strict=True))
    for part in FOLDERS:
        folder = target / part
        if not folder.is_dir():
            continue
        found = find_files(folder)
        checked = check_files(found.images)
        broken = [file for file in checked if file.error]
        line = f"{folder}: {len(checked):,} images"
        if part in expected and expected[part] != len(checked):
            line += f" (the original has {expected[part]:,})"
        if broken:
            line += f", {len(broken)} broken"
        log(line)
        if found.passed_over:
            log(found.passed_over)
        bad += broken
    for file in bad:
        log(f"bad image {file.path}: {file.error}")
    return bad
