"""What is in a file of weights, or in the files of a folder: networks, what was done to read them, and what
else lies there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor

from fastcyclegan.checkpoints.architecture import UnknownArchitectureError
from fastcyclegan.checkpoints.find_networks import Network, find_networks
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
MOST_SHOWN = 12


@dataclass(frozen=True)
class InspectConfig:
    """Say which networks a file of weights holds, read off its keys and shapes. No code in it is run."""

    file: Annotated[Path, tyro.conf.Positional]
    """The file, or a folder with such files (a run, official checkpoints)."""


def describe(path: Path) -> Iterator[str]:
    """Yield lines on ``path``, a file or a folder. Raises UserError where a file cannot be read or holds no
    network that is known here.

    In a folder such files have that said of them, and the others are described; UserError where it has no
    files of weights.
    """
    if not path.is_dir():
        yield from _describe_file(path)
        return
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"{path}: no files of weights in it ({', '.join(SUFFIXES)})")
    for file in files:
        try:
            yield from _describe_file(file)
        except UserError as error:
            yield str(error)


def _describe_file(file: Path) -> Iterator[str]:
    found = load_tensors(file)
    try:
        networks = find_networks(found)
    except UnknownArchitectureError as error:
        raise UserError(f"{file}: {error}") from None
    yield f"{file}: {file.stat().st_size / 1e6:,.1f} MB"
    for network in networks:
        yield from _describe_network(network)
    others = []
    for key, value in found.items():
        if not _holds(str(key), value, networks):
            others.append(f"{key} ({_kind(value)})")
    if others:
        shown = ", ".join(others[:MOST_SHOWN])
        if len(others) > MOST_SHOWN:
            shown += ", ..."
        yield f"  beside them: {shown}"


def _describe_network(network: Network) -> Iterator[str]:
    tensors = network.weights.values()
    kinds: set[str] = set()
    numbers = 0
    for tensor in tensors:
        numbers += tensor.numel()
        if tensor.is_floating_point():
            kinds.add(str(tensor.dtype).removeprefix("torch."))
    line = (
        f"{network.architecture}: {len(tensors)} tensors, {numbers:,} numbers, {' and '.join(sorted(kinds))}"
    )
    if network.place:
        line = f"{network.place}: {line}"
    yield f"  {line}"
    for note in network.architecture.notes:
        yield f"    {note}"


def _holds(key: str, value: Any, networks: list[Network]) -> bool:
    """Whether a network lies at the outermost ``key`` or is made of it."""
    if isinstance(value, Tensor):
        return True
    return any(f"{network.place}.".startswith(f"{key}.") for network in networks)


def _kind(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        return f"{len(value)} entries"
    return f"{type(value).__name__} {str(value)[:40]}"
