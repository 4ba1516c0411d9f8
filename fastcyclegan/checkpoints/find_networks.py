"""Find the networks in the contents of a file, whichever of the usual naming schemes its keys follow.

Files in the wild nest weights under other keys or in lists, prefix their keys (``module.``, ``_orig_mod.``,
the name of an attribute), call residual blocks ``block``, or contain running statistics that instance norm
kept before PyTorch 0.4. These differences are removed first, with a note on each. ``architecture.py`` then
recognises the network.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.checkpoints.architecture import (
    STATISTICS,
    Architecture,
    UnknownArchitectureError,
    Weights,
    no_close_match,
    recognise,
)
from fastcyclegan.errors import shortened

_WRAPPER = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")
_BLOCK = re.compile(r"^(model\.\d+)\.block\.")
_FIRST_LAYERS = ("model.1.weight", "model.model.0.weight", "model.0.weight", "net.0.weight", "model.7.weight")
# No real file exceeds these limits. A file that does was crafted to waste time and memory.
_MAX_TENSORS, _DEEPEST = 20_000, 8


@dataclass(frozen=True)
class Network:
    """One network in a file.

    ``place`` is the dotted path of keys that leads to the network ("" if the whole file is the network). The
    key of an entry of a list or a tuple is its number. ``weights`` maps the official keys to the tensors.
    """

    place: str
    architecture: Architecture
    weights: dict[str, Tensor]


def find_networks(contents: Any) -> list[Network]:
    """Return the networks in ``contents``: a state_dict, or state_dicts in mappings, lists and tuples.

    Raises UnknownArchitectureError if there are no networks; the message names the closest known network and
    the differences.
    """
    networks: list[Network] = []
    problems: list[str] = []
    # A list, so that too many tensors are noticed before any network is built.
    for place, tensors in list(state_dicts(contents)):
        for candidate in _candidates(place, tensors):
            try:
                networks.append(_network(candidate))
            except UnknownArchitectureError as error:
                problems.append(_at(candidate.place, str(error)))
    if networks:
        return networks
    if problems:
        raise UnknownArchitectureError(problems[0])
    raise _no_network(contents)


def _no_network(contents: Any) -> UnknownArchitectureError:
    keys: list[str] = []
    for _, tensors in state_dicts(contents):
        keys += tensors
    if keys:
        return no_close_match(keys)
    if isinstance(contents, (Mapping, list, tuple)) and not contents:
        return UnknownArchitectureError("not a state_dict: it is empty")
    return UnknownArchitectureError(
        f"not a state_dict: it is a {type(contents).__name__} without named tensors"
    )


# --- Groups of tensors --------------------------------------------------------------------------------------


def entries_of(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return the keys and values in a mapping, a list or a tuple, where keys are numbers; () for all else."""
    if isinstance(value, dict):
        return dict.items(value)  # a file can give it an attribute of this name
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    return ()


def state_dicts(contents: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each mapping with tensors in nested mappings, lists and tuples, preceded by its path of keys.

    Raises UnknownArchitectureError if they have too many tensors, all together, to be networks.
    """
    count = 0
    for place, mapping in _mappings(contents, "", (), {}):
        # Detached, they have no attributes of the file, which could hide the methods of a tensor.
        named = [(str(key), value) for key, value in entries_of(mapping) if isinstance(value, Tensor)]
        tensors = {key: Tensor.detach(value) for key, value in named}
        count += len(tensors)
        if count > _MAX_TENSORS:
            message = f"{count:,} tensors, more than any known network has"
            raise UnknownArchitectureError(_at(place, message))
        yield place, tensors


_Inner = list[tuple[str, Any]]


def _mappings(
    value: Any, place: str, parents: tuple[int, ...], known: dict[tuple[int, int], tuple[bool, _Inner]]
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the mappings in ``value`` that have tensors, preceded by their paths of keys.

    ``parents`` are the ids of what encloses it. See ``_inner`` for ``known``.
    """
    has_tensors, inner = _inner(value, len(parents), known)
    if has_tensors:
        yield place, value
    for key, item in inner:
        if id(item) not in (*parents, id(value)):
            yield from _mappings(item, _join(place, key), (*parents, id(value)), known)


def _inner(value: Any, depth: int, known: dict[tuple[int, int], tuple[bool, _Inner]]) -> tuple[bool, _Inner]:
    """Return whether ``value`` is a mapping with tensors, and what in it leads to such mappings.

    ``known`` keeps the results, because a small file can contain one object at very many places.
    """
    if not isinstance(value, (Mapping, list, tuple)) or depth > _DEEPEST:
        return False, []
    if (id(value), depth) not in known:
        has_tensors, inner = False, []
        for key, item in entries_of(value):
            if isinstance(item, Tensor):
                has_tensors = isinstance(value, Mapping)
                continue
            leads_to_tensors = any(_inner(item, depth + 1, known))
            if leads_to_tensors:
                inner.append((str(key), item))
        known[id(value), depth] = has_tensors, inner
    return known[id(value), depth]


def _join(place: str, key: str) -> str:
    if place:
        return f"{place}.{key}"
    return key


def _at(place: str, message: str) -> str:
    """Prefix ``message`` with ``place``, the path of keys that the message is about."""
    if place:
        return f"{shortened(place)}: {message}"
    return message


# --- Networks in a group ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """Weights that may belong to a network, and the prefixes that were removed from their keys."""

    place: str
    weights: Weights
    prefixes: list[str]


def _candidates(place: str, tensors: Mapping[str, Tensor]) -> Iterator[_Candidate]:
    """Split a group of tensors by key prefix, and yield each part that may be a network."""
    stripped: dict[str, Tensor] = {}
    wrappers: set[str] = set()
    for key, value in tensors.items():
        stripped[_WRAPPER.sub("", key)] = value
        wrappers.update(_WRAPPER.findall(key))
    prefixes = _prefixes(stripped)
    for prefix in prefixes:
        nested = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        weights: dict[str, Tensor] = {}
        for key, value in stripped.items():
            if key.startswith(prefix) and not key.startswith(nested):
                weights[key.removeprefix(prefix)] = value
        location, name = place, prefix.rstrip(".")
        if name:
            location = _join(place, name)
        yield _Candidate(location, weights, [*sorted(wrappers), prefix])


def _prefixes(keys: Mapping[str, Any]) -> list[str]:
    """Return the outermost prefixes in ``keys`` that are followed by the name of a network's first layer.

    A prefix is "" or ends with a dot.
    """
    prefixes: set[str] = set()
    for key in keys:
        for layer in _FIRST_LAYERS:
            if key == layer or key.endswith(f".{layer}"):
                prefixes.add(key.removesuffix(layer))
    return sorted(prefix for prefix in prefixes if not _is_part_of_another(prefix, prefixes))


def _is_part_of_another(prefix: str, prefixes: set[str]) -> bool:
    """Return whether the layers under ``prefix`` belong to a network under another of ``prefixes``."""
    for outer in prefixes:
        if prefix != outer and prefix.startswith(outer):
            remainder = prefix.removeprefix(outer)
            if remainder.startswith(("model.", "net.")):
                return True
    return False


def _network(candidate: _Candidate) -> Network:
    """Return the network that the weights of ``candidate`` belong to.

    If a network was saved as the attribute "model" of another module, its keys begin with "model.". The keys
    of a U-Net do too, so the prefix is removed only if the weights match no network with it.
    """
    try:
        return _recognised(candidate)
    except UnknownArchitectureError:
        if all(key.startswith("model.") for key in candidate.weights):
            inner = {key.removeprefix("model."): value for key, value in candidate.weights.items()}
            prefixes = [*candidate.prefixes, "model."]
            with contextlib.suppress(UnknownArchitectureError):
                return _recognised(_Candidate(candidate.place, inner, prefixes))
        raise


def _recognised(candidate: _Candidate) -> Network:
    weights, changes = _normalised(candidate.weights)
    notes = [f'removed the prefix "{shortened(prefix)}"' for prefix in candidate.prefixes if prefix]
    architecture = recognise(weights, (*notes, *changes))
    return Network(candidate.place, architecture, weights)


def _normalised(weights: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """Return ``weights`` with the official keys, and notes on what was changed."""
    notes: list[str] = []
    renamed = {_BLOCK.sub(r"\1.conv_block.", key): value for key, value in weights.items()}
    if renamed.keys() != weights.keys():
        notes.append("renamed block to conv_block in residual blocks")
    stale = {key for key in renamed if _is_stale(key, renamed)}
    if stale:
        dropped = f"dropped {len(stale)} running statistics of instance norms"
        notes.append(f"{dropped} (kept by PyTorch before 0.4)")
    kept = {key: value for key, value in renamed.items() if key not in stale}
    norms = [key.removesuffix("running_mean") for key in kept if key.endswith(".running_mean")]
    counts = [f"{norm}num_batches_tracked" for norm in norms]
    missing = [count for count in counts if count not in kept]
    if missing:
        notes.append(f"added {len(missing)} counts of batches (not kept by PyTorch before 0.4.1)")
        kept |= {count: torch.zeros((), dtype=torch.int64) for count in missing}
    return kept, notes


def _is_stale(key: str, weights: Weights) -> bool:
    """Return whether ``key`` is a running statistic of an instance norm without scale and shift.

    The convolution before such a norm has a bias, which tells it apart from batch norm.
    """
    norm, _, statistic = key.rpartition(".")
    owner, _, index = norm.rpartition(".")
    if statistic not in STATISTICS or not index.isdigit():
        return False
    convolution = f"{owner}.{int(index) - 1}"
    return f"{norm}.weight" not in weights and f"{convolution}.bias" in weights
