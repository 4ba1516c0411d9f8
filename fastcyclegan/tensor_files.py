"""Load tensor files safely, even untrusted ones, and write them atomically.

No code from a file is executed, an invalid file is reported as one clear line, and loading uses no more
memory than the file's size. The supported formats are PyTorch's own (zip archives since 1.6, pickles before)
and, if the package safetensors is installed, its format.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import pickle
import re
import socket
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.errors import UserError
from fastcyclegan.files.harmless import NAMES, READING, RefusedError, harmless_objects
from fastcyclegan.files.json_file import parse_json
from fastcyclegan.files.zip_layout import check_layout

_ZIP = b"PK\x03\x04"
# Maximum number of parts of an archive. The training state of a run has fewer than 2,000.
_MAX_PARTS = 20_000
_UNKNOWN = re.compile(r"(?:GLOBAL|Unsupported class) ([A-Za-z_][\w.]{0,80})")
"""The name of an object that torch.load does not know, in its error."""
_DAMAGED = "it is damaged, or not a PyTorch file"


def load_tensors(path: Path) -> Any:
    """Load the contents of ``path``, with all tensors on the CPU, without running any code from the file.

    An archive is mapped into memory and its tensors share that memory, so copy them if they must outlive the
    next write to the file. Raises UserError if the file is missing, unreadable or invalid.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder, not a weights file")
    if path.exists() and not path.is_file():  # reading a pipe could block forever
        raise UserError(f"{path}: not a regular file")
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        if start == bytes(len(_ZIP)):  # often the rest of a crash; torch takes it for an empty .tar file
            raise UserError(f"{path}: cannot be loaded: {_DAMAGED}")
        is_zip = start == _ZIP
        if is_zip:
            _refuse_bombs(path)
            _refuse_ambiguous(path)
            check_sums(path)
        return _load_pickled(path, is_zip)
    except UserError:
        raise
    except RefusedError as error:
        raise UserError(f"{path}: cannot be loaded: {_contains(str(error))}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except PermissionError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    # For damaged files and for files in another format, torch.load raises UnpicklingError, RuntimeError,
    # EOFError, OSError and more.
    except Exception as error:
        raise UserError(f"{path}: cannot be loaded: {_reason(str(error))}") from None


def _load_pickled(path: Path, is_zip: bool) -> Any:
    """Load a file of torch's, and the harmless objects in it only if it has some.

    They need a list that torch keeps for the whole process, so it is left alone for all other files.
    """
    with READING:
        try:
            return _load_by_torch(path, is_zip)
        except pickle.UnpicklingError as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None or unknown[1] not in NAMES:
                raise
        with harmless_objects():
            return _load_by_torch(path, is_zip)


def _load_by_torch(path: Path, is_zip: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged bytes that look like a version
        if not _is_utf8(path):
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _is_utf8(path: Path) -> bool:
    """Return whether ``path`` is UTF-8, which torch and safetensors take every path for."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _reason(message: str) -> str:
    """Explain the error ``message`` of torch.load to a user."""
    if "legacy .tar" in message or "TorchScript" in message:
        return "it is a TorchScript or .tar file, which can run code; save the module's state_dict() instead"
    if "Unsupported operand" in message:
        return f"{_DAMAGED}, or was saved with another pickle_protocol than torch.save's default"
    if "GLOBAL" not in message and "Unsupported class" not in message:
        return _DAMAGED
    # Show the name only if it is a valid one: a damaged file can have arbitrary bytes there.
    match = _UNKNOWN.search(message)
    objects = "objects other than tensors"
    if match:
        objects += f" ({match[1]})"
    return _contains(f"{objects}, which could run code")


def _contains(objects: str) -> str:
    """Return why a file with ``objects`` beside its weights is refused, and what to do."""
    return f"it contains {objects}; save only the state_dict()"


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    if importlib.util.find_spec("safetensors") is None:
        raise UserError(f"{path}: loading it needs the package safetensors: pip install 'fastcyclegan[hub]'")
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        if not _is_utf8(path):
            return load(path.read_bytes())
        return load_file(path)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: cannot be loaded: damaged, or not a safetensors file") from error


def arguments_in(path: Path) -> dict[str, Any]:
    """Return the arguments that ``save_pretrained`` stored in the metadata of ``path``.

    Returns {} for a file that was not written by ``save_pretrained``.
    """
    if path.suffix != ".safetensors" or importlib.util.find_spec("safetensors") is None:
        return {}
    try:
        # Not by the package, which opens only paths that are UTF-8.
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(min(size, path.stat().st_size)))
        arguments = parse_json(header["__metadata__"]["fastcyclegan"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if not isinstance(arguments, dict):
        return {}
    return arguments


def _refuse_bombs(path: Path) -> None:
    """Raise UserError if an archive would expand to more than its file size.

    PyTorch writes the parts uncompressed, one after the other, so a valid archive never does.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    claimed = index = 0
    for part in parts:
        claimed += part.file_size
        if part.filename.endswith(".pkl"):
            index += part.file_size
    if len(parts) > _MAX_PARTS or index > _MAX_PARTS * 100:
        raise UserError(f"{path}: cannot be loaded: it lists more tensors than any network has")
    if any(part.filename.endswith("/constants.pkl") for part in parts):
        raise UserError(f"{path}: cannot be loaded: {_reason('TorchScript')}")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise UserError(f"{path}: cannot be loaded: its parts are compressed, which PyTorch never does")
    if claimed > path.stat().st_size:
        raise UserError(f"{path}: cannot be loaded: its parts claim more bytes than the file has")


def _refuse_ambiguous(path: Path) -> None:
    """Raise UserError if torch could load other parts of an archive than those that are checked here."""
    try:
        check_layout(path)
    except (zipfile.BadZipFile, ValueError) as error:  # ValueError: a name that is not text
        raise UserError(f"{path}: cannot be loaded: it is damaged or was tampered with: {error}") from None


def check_sums(path: Path) -> None:
    """Raise UserError if an archive does not match its checksums, which torch.load does not verify."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() is not None
    # zipfile raises NotImplementedError for an unknown compression method, which means a damaged header.
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, zlib.error):
        damaged = True
    if damaged:
        raise UserError(f"{path}: cannot be loaded: {_DAMAGED}")


def checksum(path: Path) -> str:
    """Return a checksum of the archive at ``path``, or "" if it is missing or not an archive.

    It is computed from the checksums that the archive stores of its parts, so only its directory is read.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                # The name of the first folder is that of the file that torch wrote, which is a temporary one.
                name = part.filename.partition("/")[2]
                digest.update(f"{name} {part.file_size} {part.CRC}\n".encode())
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, zlib.error, ValueError):
        return ""
    return digest.hexdigest()[:16]


def fitting_name(name: str, ending: str, folder: Path) -> str:
    """Return ``name`` + ``ending``, with ``name`` shortened if that is too long for a file in ``folder``.

    A shortened name ends with a hash of the whole name, so that different names remain different.
    """
    longest = _longest_name(folder)
    whole = name + ending
    if len(os.fsencode(whole)) <= longest:
        return whole
    ending = f"-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{ending}"
    # Remove whole characters, which can have several bytes each.
    while name and len(os.fsencode(name + ending)) > longest:
        name = name[:-1]
    return name + ending


def _longest_name(folder: Path) -> int:
    """Return how many bytes the name of a file in ``folder`` can have. Encrypted folders allow fewer."""
    usual = 255
    try:
        limit = os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows, or the folder does not exist yet
        return usual
    return limit if 0 < limit < usual else usual


def partial_of(path: Path) -> Path:
    """Return the temporary file in which this process writes ``path``.

    Its name fits if that of ``path`` does. If that is too long itself, so is the temporary one.
    """
    name, ending = f".{path.name}", f".{os.getpid()}-{_machine()}.partial"
    if len(os.fsencode(path.name)) > _longest_name(path.parent):
        return path.with_name(name + ending)
    return path.with_name(fitting_name(name, ending, path.parent))


@functools.cache
def _machine() -> str:
    """Return an identifier of this machine, or container: of where process numbers mean the same."""
    space = ""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write ``path`` atomically: ``write`` fills a temporary file next to it, which then replaces it.

    The file is flushed to the disk before it is renamed, so a failure or a crash at any moment leaves the old
    file intact. Raises OSError, with ``path`` as its file name, if the disk cannot be written.
    """
    partial = partial_of(path)
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _flush_folder(path.parent)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(partial)):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """Write the names of the files in ``folder`` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_cpu(value: Any) -> Any:
    """Return a copy of nested dicts and lists with all tensors copied to the CPU.

    The copy shares no memory with the original, so training can continue meanwhile.
    """
    if isinstance(value, Tensor):
        if value.device.type == "cpu":
            return value.detach().clone()
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_cpu(item) for item in value]
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """Return all tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    tensors: list[Tensor] = []
    if isinstance(value, (list, tuple)):
        for item in value:
            tensors += tensors_in(item)
    return tensors


def save_tensors(path: Path, value: object) -> None:
    """Write nested dicts and lists of tensors atomically. Raises OSError if the disk cannot be written."""

    def write(partial: Path) -> None:
        try:
            # Use a Python file: when torch.save opens the path itself, it hides the reason for a failed
            # write.
            with partial.open("wb") as file:
                torch.save(value, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_atomically(path, write)


def remove_stale_partials(folder: Path) -> None:
    """Delete the temporary files of ``write_atomically`` in ``folder`` whose processes were killed.

    The folder may be shared with other machines, whose processes cannot be seen here. What they have written
    within the last minute is kept.
    """
    with contextlib.suppress(OSError):
        for file in folder.glob(".*.partial"):
            match = re.search(r"\.(\d+)(?:-([0-9a-f]{8}))?\.partial$", file.name)
            with contextlib.suppress(OSError):
                if match and not _is_running(int(match[1])) and _is_settled(file, match[2]):
                    file.unlink()


def _is_settled(file: Path, machine: str | None) -> bool:
    """Return whether nobody is writing ``file``, as far as its process is not one of this machine."""
    return machine == _machine() or time.time() - file.stat().st_mtime > 60


def _is_running(process: int) -> bool:
    """Return whether this machine has a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or a number that no process can have
        pass
    return True
