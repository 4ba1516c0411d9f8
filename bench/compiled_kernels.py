"""What Triton compiled, packed into pieces that travel from one machine to the next."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

# So many files, and none larger, come back from a machine elsewhere.
MOST_FILES, PIECE, MOST_PIECES = 8, 15 << 20, 3


def save_compiled(results: Path) -> None:
    """Pack what Triton compiled into pieces that travel, the newest kernels first; those that do not fit are
    compiled again.
    """
    cache = compiled_kernels()
    for old in results.glob("triton-cache.tgz.*"):
        old.unlink()
    if not cache.is_dir() or not any(cache.iterdir()):
        return
    others = [path for path in results.rglob("*") if path.is_file()]
    pieces = max(1, min(MOST_PIECES, MOST_FILES - len(others)))
    folders = [path for path in cache.iterdir() if path.is_dir()]
    folders.sort(key=lambda path: -path.stat().st_mtime)
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar:
            for folder in folders:
                # Triton's files name each other by whole paths, so they serve there alone.
                tar.add(folder, arcname=str(folder).lstrip("/"))
                # The next one, and what gzip has not written yet, must fit too.
                if packed.tell() > 0.75 * pieces * PIECE:
                    break
        packed.seek(0)
        for number in range(pieces):
            if piece := packed.read(PIECE):
                (results / f"triton-cache.tgz.{number}").write_bytes(piece)


def compiled_kernels() -> Path:
    """Return where Triton keeps what it compiled."""
    folder = os.environ.get("TRITON_CACHE_DIR")
    if folder:
        return Path(folder)
    return Path.home() / ".triton" / "cache"


def load_compiled(folder: Path) -> int:
    """Unpack the pieces that ``save_compiled`` left in ``folder`` to where they were made; return how many
    kernels.
    """
    cache = str(compiled_kernels()).strip("/")
    members, kernels = [], set()
    with tempfile.TemporaryFile() as packed:
        for piece in sorted(folder.glob("triton-cache.tgz.*")):
            packed.write(piece.read_bytes())
        packed.seek(0)
        with tarfile.open(fileobj=packed, mode="r:gz") as tar:
            for member in tar.getmembers():
                if member.name.startswith(f"{cache}/"):
                    members.append(member)
                    kernels.add(member.name.removeprefix(f"{cache}/").partition("/")[0])
            tar.extractall("/", members, filter="data")
    return len(kernels)


def told_of_compiled(folder: Path) -> str:
    """Unpack compiled kernels, and return a line on what came of it: without them everything is compiled
    again.
    """
    unused = f"compiled kernels in {folder} are not used"
    try:
        count = load_compiled(folder)
    except (OSError, EOFError, tarfile.TarError) as error:
        return f"{unused}: {type(error).__name__}: {error}"
    if not count:
        return f"{unused}: they were made in another folder than {compiled_kernels()} (TRITON_CACHE_DIR)"
    return f"{count} kernels need no compiling"
