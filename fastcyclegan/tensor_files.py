"""Files of tensors, read without trust (no code of theirs runs, what is wrong is one clear line) and written
whole or not at all.

They get no more memory than they hold. PyTorch's own (zip archives since 1.6, pickles before), and
safetensors where that package is installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.errors import UserError

_ZIP = b"PK\x03\x04"
# A whole run's state has under 2,000.
_MOST_PARTS = 20_000
_DAMAGED = "it is damaged, or not a PyTorch file"


def load_tensors(path: Path) -> Any:
    """Return what is in ``path``, tensors on the CPU, without running any code from it. Raises UserError for
    whatever is wrong.

    The tensors of an archive lie in the file, which is mapped into memory: copy what is to outlive the next
    write to it.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder, not a file of weights")
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise UserError(f"{path}: not a regular file")
    try:
        with path.open("rb") as file:
            start = file.read(len(_ZIP))
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        is_zip = start == _ZIP
        if is_zip:
            _refuse_bombs(path)
            check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged bytes that look like a version
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except PermissionError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    # torch.load raises UnpicklingError, RuntimeError, EOFError, OSError and more for files that are damaged
    # or not its own.
    except Exception as error:
        raise UserError(f"{path}: cannot be loaded: {_reason(str(error))}") from None


def _reason(message: str) -> str:
    """Return what ``message`` of torch.load means."""
    if "legacy .tar" in message or "TorchScript" in message:
        return "it is a TorchScript or .tar file, which can run code; save the module's state_dict() instead"
    if "GLOBAL" not in message and "Unsupported class" not in message:
        return _DAMAGED
    # The name alone if it is one: a damaged file has any bytes there.
    named = re.search(r"(?:GLOBAL|Unsupported class) ([A-Za-z_][\w.]{0,80})", message)
    objects = "objects other than tensors"
    if named:
        objects += f" ({named[1]})"
    return f"it holds {objects}, which could run code; save the state_dict() alone"


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    if importlib.util.find_spec("safetensors") is None:
        raise UserError(f"{path}: needs the package safetensors: pip install 'fastcyclegan[hub]'")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: cannot be loaded: it is damaged, or not a safetensors file") from error


def arguments_in(path: Path) -> dict[str, Any]:
    """Return what ``save_pretrained`` says in the metadata of ``path`` that it wrote; {} where that is none
    of its files.
    """
    if path.suffix != ".safetensors" or importlib.util.find_spec("safetensors") is None:
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        if not metadata or "fastcyclegan" not in metadata:
            return {}
        about = json.loads(metadata["fastcyclegan"])
    except (SafetensorError, OSError, ValueError):
        return {}
    if not isinstance(about, dict):
        return {}
    return about


def _refuse_bombs(path: Path) -> None:
    """Raise UserError for an archive that would become larger than its file: PyTorch writes its parts as they
    are, one after the other.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    claimed = index = 0
    for part in parts:
        claimed += part.file_size
        if part.filename.endswith(".pkl"):
            index += part.file_size
    if len(parts) > _MOST_PARTS or index > _MOST_PARTS * 100:
        raise UserError(f"{path}: cannot be loaded: it lists more tensors than any network has")
    if any(part.filename.endswith("/constants.pkl") for part in parts):
        raise UserError(f"{path}: cannot be loaded: {_reason('TorchScript')}")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise UserError(f"{path}: cannot be loaded: its parts are compressed, which PyTorch's never are")
    if claimed > path.stat().st_size:
        raise UserError(f"{path}: cannot be loaded: its parts claim more bytes than it has")


def check_sums(path: Path) -> None:
    """Raise UserError where an archive does not match its own checksums (torch.load does not look at
    them)."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() is not None
    # NotImplementedError is zipfile's word for a compression method that does not exist: a damaged header.
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, zlib.error):
        damaged = True
    if damaged:
        raise UserError(f"{path}: cannot be loaded: {_DAMAGED}")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` fill a temporary file beside ``path``, flush it to the disk, and rename it over
    ``path``.

    A failure or a crash at any moment leaves the old file whole. Raises OSError where the disk refuses.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def to_cpu(value: Any) -> Any:
    """Return a copy of nested dicts and lists with every tensor copied to the CPU (so that training can go
    on).
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
    """Return the tensors in nested dicts and lists."""
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
    """Write nested dicts and lists of tensors, whole or not at all. Raises OSError where the disk refuses."""

    def write(partial: Path) -> None:
        try:
            # Through a Python file: writing by itself, torch.save hides why the disk refused.
            with partial.open("wb") as file:
                torch.save(value, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_atomically(path, write)
