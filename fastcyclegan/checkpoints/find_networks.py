"""The networks in what a file held, in the spellings that files have.

Files in the wild nest weights under other keys, prefix them (``module.``, ``_orig_mod.``, an attribute's
name), call residual blocks ``block``, or hold running statistics that instance norm kept before PyTorch 0.4.
All that is taken away first, and noted; ``architecture.py`` says what network is left.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastcyclegan.checkpoints.architecture import (
    STATISTICS,
    Architecture,
    UnknownArchitectureError,
    Weights,
    nothing_near,
    recognise,
)

_WRAPPER = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")
_BLOCK = re.compile(r"^(model\.\d+)\.block\.")
_FIRST_LAYERS = ("model.1.weight", "model.model.0.weight", "model.0.weight", "net.0.weight", "model.7.weight")
# No file of a network has more; one that was made to, to take time and memory, is none.
_MOST_TENSORS, _DEEPEST = 20_000, 8


@dataclass(frozen=True)
class Network:
    """One network of a file: where in the file it is ("" for all of it), what it is, and its weights by our
    keys.
    """

    place: str
    architecture: Architecture
    weights: dict[str, Tensor]


def find_networks(found: Any) -> list[Network]:
    """Return the networks in what a file held: a state_dict, or mappings around some.

    Raises UnknownArchitectureError where there are none; the message names what is nearest, and what is
    strange in it.
    """
    networks: list[Network] = []
    problems: list[str] = []
    for place, tensors in state_dicts(found):
        for candidate in _candidates(place, tensors):
            try:
                networks.append(_network(candidate))
            except UnknownArchitectureError as error:
                problems.append(_at(candidate.place, str(error)))
    if networks:
        return networks
    if problems:
        raise UnknownArchitectureError(problems[0])
    raise _no_network(found)


def _no_network(found: Any) -> UnknownArchitectureError:
    keys: list[str] = []
    for _, tensors in state_dicts(found):
        keys += tensors
    if keys:
        return nothing_near(keys)
    if isinstance(found, Mapping) and not found:
        return UnknownArchitectureError("not a state_dict: it holds nothing")
    return UnknownArchitectureError(f"not a state_dict: it holds no tensors, but a {type(found).__name__}")


# --- Groups of tensors --------------------------------------------------------------------------------------


def state_dicts(
    found: Any, place: str = "", around: tuple[int, ...] = ()
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each group of tensors in nested mappings, with its path of keys. ``around``: the mappings that it
    is in.

    Raises UnknownArchitectureError for a group that is too large to be a network's.
    """
    if not isinstance(found, Mapping) or id(found) in around or len(around) > _DEEPEST:
        return
    own = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if len(own) > _MOST_TENSORS:
        what = f"{len(own):,} tensors, which no network that is known here has"
        raise UnknownArchitectureError(_at(place, what))
    if own:
        yield place, own
    for key, value in found.items():
        yield from state_dicts(value, _inside(place, str(key)), (*around, id(found)))


def _inside(place: str, key: str) -> str:
    if place:
        return f"{place}.{key}"
    return key


def _at(place: str, what: str) -> str:
    """Return ``what`` after the place in the file that it is said of."""
    if place:
        return f"{place}: {what}"
    return what


# --- Networks in a group ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """Weights that may be a network's, and the prefixes that were taken off their keys."""

    place: str
    weights: Weights
    prefixes: list[str]


def _candidates(place: str, tensors: Mapping[str, Tensor]) -> Iterator[_Candidate]:
    """Yield what may be networks in a group of tensors."""
    stripped: dict[str, Tensor] = {}
    wrappers: set[str] = set()
    for key, value in tensors.items():
        stripped[_WRAPPER.sub("", key)] = value
        wrappers.update(_WRAPPER.findall(key))
    prefixes = _prefixes(stripped)
    for prefix in prefixes:
        nested = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        own: dict[str, Tensor] = {}
        for key, value in stripped.items():
            if key.startswith(prefix) and not key.startswith(nested):
                own[key.removeprefix(prefix)] = value
        where, name = place, prefix.rstrip(".")
        if name:
            where = _inside(place, name)
        yield _Candidate(where, own, [*sorted(wrappers), prefix])


def _prefixes(keys: Mapping[str, Any]) -> list[str]:
    """Return what stands before the first layers of networks among ``keys``: "" or names with a dot at the
    end, outermost ones alone.
    """
    found: set[str] = set()
    for key in keys:
        for layer in _FIRST_LAYERS:
            if key == layer or key.endswith(f".{layer}"):
                found.add(key.removesuffix(layer))
    return sorted(prefix for prefix in found if not _is_part_of_another(prefix, found))


def _is_part_of_another(prefix: str, prefixes: set[str]) -> bool:
    """Whether ``prefix`` stands before layers of a network that another of ``prefixes`` stands before."""
    for outer in prefixes:
        if prefix != outer and prefix.startswith(outer):
            rest = prefix.removeprefix(outer)
            if rest.startswith(("model.", "net.")):
                return True
    return False


def _network(candidate: _Candidate) -> Network:
    """Return the network of ``candidate``. It may be the attribute "model" of something: then its keys look
    like a U-Net's from outside.
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
    notes = [f"the prefix {prefix} was taken off" for prefix in candidate.prefixes if prefix]
    architecture = recognise(weights, (*notes, *changes))
    return Network(candidate.place, architecture, weights)


def _normalised(weights: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """Return ``weights`` by the official keys, and notes of what was changed."""
    notes: list[str] = []
    renamed = {_BLOCK.sub(r"\1.conv_block.", key): value for key, value in weights.items()}
    if renamed.keys() != weights.keys():
        notes.append("residual blocks were called block")
    stale = {key for key in renamed if _is_stale(key, renamed)}
    if stale:
        which = f"{len(stale)} running statistics of instance norms"
        notes.append(f"{which} were dropped (they kept some before PyTorch 0.4)")
    return {key: value for key, value in renamed.items() if key not in stale}, notes


def _is_stale(key: str, weights: Weights) -> bool:
    """Whether ``key`` is a statistic of an instance norm without scale and shift: then the convolution before
    it has a bias.
    """
    norm, _, statistic = key.rpartition(".")
    owner, _, index = norm.rpartition(".")
    if statistic not in STATISTICS or not index.isdigit():
        return False
    convolution = f"{owner}.{int(index) - 1}"
    return f"{norm}.weight" not in weights and f"{convolution}.bias" in weights
