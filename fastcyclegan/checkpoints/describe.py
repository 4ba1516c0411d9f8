"""Describe a weights file, or all weights files in a folder.

The description covers the networks, the changes made to their keys, and the other contents of the file.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from fastcyclegan.checkpoints.architecture import UnknownArchitectureError
from fastcyclegan.checkpoints.find_networks import Network, entries_of, find_networks
from fastcyclegan.checkpoints.loading import own_network
from fastcyclegan.errors import UserError, shortened
from fastcyclegan.files.harmless import DType, Fields, NumpyType
from fastcyclegan.tensor_files import load_tensors

# Values whose texts are short.
_SHOWN = (
    *(bool, int, float, complex, datetime.date, datetime.time, datetime.timedelta),
    *(torch.dtype, torch.device, DType, NumpyType, PurePath),
)
SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
MAX_SHOWN = 12


@dataclass(frozen=True)
class InspectConfig:
    """Print which networks a weights file contains, based on keys and shapes. No code in the file is run."""

    #: Weights file, or a folder of weights files (such as a run or official checkpoints).
    file: Annotated[Path, tyro.conf.Positional]


def describe(path: Path) -> Iterator[str]:
    """Yield lines that describe ``path``, a file or a folder.

    Raises UserError if a file cannot be read or contains no known network. In a folder, such an error is
    yielded as a line and the other files are still described. UserError is then raised only if the folder
    contains no weights files.
    """
    if not path.is_dir():
        yield from _describe_file(path)
        return
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"{path}: contains no weights files (looked for {', '.join(SUFFIXES)})")
    for file in files:
        try:
            yield from _describe_file(file)
        except UserError as error:
            yield str(error)


def _describe_file(file: Path) -> Iterator[str]:
    contents = load_tensors(file)
    try:
        networks = find_networks(contents)
    except UnknownArchitectureError as error:
        own = own_network(file)
        if own is None:
            raise UserError(f"{file}: {error}") from None
        yield f"{file}: {file.stat().st_size / 1e6:,.1f} MB"
        yield f"  {_described(own.net.state_dict(), str(own))}"
        return
    yield f"{file}: {file.stat().st_size / 1e6:,.1f} MB"
    for network in networks[:MAX_SHOWN]:
        yield from _describe_network(network)
    if len(networks) > MAX_SHOWN:
        yield f"  and {len(networks) - MAX_SHOWN} more networks"
    others = []
    for key, value in entries_of(contents):
        if not _belongs_to_network(str(key), value, networks):
            others.append(f"{shortened(str(key))} ({_kind(value)})")
    if others:
        shown = ", ".join(others[:MAX_SHOWN])
        if len(others) > MAX_SHOWN:
            shown += f" and {len(others) - MAX_SHOWN} more"
        yield f"  other contents: {shown}"


def _describe_network(network: Network) -> Iterator[str]:
    line = _described(network.weights, str(network.architecture))
    if network.place:
        line = f"{shortened(network.place)}: {line}"
    yield f"  {line}"
    for note in network.architecture.notes:
        yield f"    {note}"


def _described(weights: Mapping[str, Tensor], architecture: str) -> str:
    """Return a line about ``weights``: what they are the weights of, how many there are, and their types."""
    dtypes: set[str] = set()
    count = 0
    for tensor in weights.values():
        count += tensor.numel()
        if tensor.is_floating_point():
            dtypes.add(str(tensor.dtype).removeprefix("torch."))
    return f"{architecture}: {len(weights)} tensors, {count:,} values, {' and '.join(sorted(dtypes))}"


def _belongs_to_network(key: str, value: Any, networks: list[Network]) -> bool:
    """Return whether the top-level entry ``key`` of a file is part of a network or contains one."""
    if isinstance(value, Tensor):
        return True
    return any(f"{network.place}.".startswith(f"{key}.") for network in networks)


def _kind(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple, Fields)):
        return f"entries: {len(value)}"
    if isinstance(value, (str, bytes)):
        return f"{type(value).__name__} {str(value[:40])[:40]}"
    if value is None or isinstance(value, _SHOWN):
        return f"{type(value).__name__} {str(value)[:40]}"
    return type(value).__name__  # its text could be as long as a file wants
