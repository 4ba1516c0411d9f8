"""Pack the kernels that Triton has compiled, to reuse them on another machine."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

# Limits on the files that a remote machine sends back: the number of result files, the size of a piece in
# bytes, and the number of pieces.
MAX_FILES, PIECE, MAX_PIECES = 8, 15 << 20, 3


def save_compiled(results: Path) -> None:
    """Pack Triton's compiled kernels into files of limited size in ``results``, the newest kernels first.

    Kernels that do not fit are left out and have to be compiled again.
    """
    cache = compiled_kernels()
    for old in results.glob("triton-cache.tgz.*"):
        old.unlink()
    if not cache.is_dir() or not any(cache.iterdir()):
        return
    others = [path for path in results.rglob("*") if path.is_file()]
    pieces = max(1, min(MAX_PIECES, MAX_FILES - len(others)))
    folders = [path for path in cache.iterdir() if path.is_dir()]
    folders.sort(key=lambda path: -path.stat().st_mtime)
    with tempfile.TemporaryFile() as packed:
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar:
            for folder in folders:
                # Triton's files refer to each other by absolute paths, so they only work at the same paths.
                tar.add(folder, arcname=str(folder).lstrip("/"))
                # The next folder and the data that gzip has not written yet must still fit.
                if packed.tell() > 0.75 * pieces * PIECE:
                    break
        packed.seek(0)
        for number in range(pieces):
            if piece := packed.read(PIECE):
                (results / f"triton-cache.tgz.{number}").write_bytes(piece)


def compiled_kernels() -> Path:
    """Return the folder of Triton's compiled kernels."""
    folder = os.environ.get("TRITON_CACHE_DIR")
    if folder:
        return Path(folder)
    return Path.home() / ".triton" / "cache"


def load_compiled(folder: Path) -> int:
    """Unpack the files that ``save_compiled`` wrote to ``folder``, and return the number of kernels.

    The kernels are restored at their original paths, if these are in Triton's current cache.
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


def restore_compiled(folder: Path) -> str:
    """Restore the compiled kernels from ``folder`` if possible, and return a line that reports the result.

    If it is not possible, all kernels are compiled again.
    """
    unused = f"the compiled kernels in {folder} are not used"
    try:
        count = load_compiled(folder)
    except (OSError, EOFError, tarfile.TarError) as error:
        return f"{unused}: {type(error).__name__}: {error}"
    if not count:
        return f"{unused}: they were compiled in a folder other than {compiled_kernels()} (TRITON_CACHE_DIR)"
    return f"restored {count} compiled kernels"
