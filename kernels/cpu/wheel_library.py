"""The libraries that a wheel carries, one for each class of processors, and how setup.py builds them.

The kernels have a plain C interface and use no headers of PyTorch or Python, so one library serves all of
their versions. ``built/built.json`` names the sources that the libraries were compiled from and their
checksums: what does not fit these sources, or is damaged, is not loaded. A checkout has no such folder.

Imports only the standard library, because setup.py uses it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ._compiler import compile_library, find_compiler, library_suffix, sources_of

BUILT = Path(__file__).with_name("built")
_FACTS = "built.json"
# A library of each name is built; "amx" uses that of AVX-512.
_LIBRARIES = {"x86_64": ("avx2", "avx512"), "arm64": ("neon",)}
_MACHINES = {"amd64": "x86_64", "aarch64": "arm64"}


@dataclass(frozen=True)
class WheelLibrary:
    """A library of the wheel and its compiler; or why it cannot be used, which is "" if there is none."""

    library: ctypes.CDLL | None
    compiler: str = ""
    problem: str = ""


def load(processor: str, source: Path, folder: Path = BUILT) -> WheelLibrary:
    """Load the library for a class of processors, if ``folder`` has one that fits the files in ``source``."""
    name = {"amx": "avx512"}.get(processor, processor)
    file = folder / (name + library_suffix())
    try:
        facts = json.loads((folder / _FACTS).read_text())
        if facts["sources"] != sources_of(source):
            return _unusable(file, "was built from other sources")
        if name not in facts["libraries"]:
            return WheelLibrary(None)
        checksum, compiler = facts["libraries"][name], facts["compiler"]
        # A pipe, say, would be read forever.
        if file.exists() and not file.is_file():
            return _unusable(file, "is no file")
        if checksum != _checksum(file):
            return _unusable(file, "is damaged")
    except (FileNotFoundError, NotADirectoryError) as error:
        return WheelLibrary(None) if error.filename == str(folder / _FACTS) else _unreadable(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return _unusable(folder / _FACTS, "is damaged")
    except OSError as error:
        return _unreadable(error)
    try:
        return WheelLibrary(ctypes.CDLL(str(file)), compiler)
    except OSError as error:
        # The error begins with the file's name.
        return _unusable(file, f"cannot be loaded: {str(error).removeprefix(f'{file}: ')}")


def _unreadable(error: OSError) -> WheelLibrary:
    return _unusable(Path(str(error.filename)), f"cannot be read: {error.strerror}")


def _unusable(file: Path, problem: str) -> WheelLibrary:
    return WheelLibrary(None, problem=f"{file} {problem}")


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def build(source: Path, folder: Path) -> list[Path]:
    """Compile the files in ``source`` for the classes of this machine into ``folder``; return the libraries.

    What was in ``folder`` before is removed. Raises CompilerError if there is no compiler or if it fails, and
    then leaves no folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    machine = platform.machine().lower()
    names = _LIBRARIES.get(_MACHINES.get(machine, machine), ())
    if not names:
        return []
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as temporary:
        made = [Path(temporary) / (name + library_suffix()) for name in names]
        for name, file in zip(names, made, strict=True):
            compile_library(compiler, name, source, file)
        folder.mkdir(parents=True)
        files = [Path(shutil.copy(file, folder)) for file in made]
    facts = {
        "compiler": compiler.version,
        "sources": sources_of(source),
        "libraries": {file.stem: _checksum(file) for file in files},
    }
    (folder / _FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    return files
