"""Find the generators of both directions in files and folders, so that training can start from them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcyclegan.checkpoints.architecture import listed
from fastcyclegan.checkpoints.find_networks import Network
from fastcyclegan.checkpoints.loading import choose, only_file, read_networks
from fastcyclegan.checkpoints.run_files import LOCK, read_config, saved_epochs, weights_file
from fastcyclegan.checkpoints.weight_sets import require_whole
from fastcyclegan.config import Direction, TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.registry import make_recipe
from fastcyclegan.tensor_files import load_tensors

OPPOSITE: dict[Direction, Direction] = {"AtoB": "BtoA", "BtoA": "AtoB"}
_EPOCH = "latest"
# The names of generators in files that contain both, without case and punctuation: netG_A2B, gen_AB, G_XtoY.
_NAMES: dict[Direction, re.Pattern[str]] = {
    "AtoB": re.compile(r"(net|model)?(g|gen|generator)?(a|ab|a2b|atob|xy|x2y|xtoy)"),
    "BtoA": re.compile(r"(net|model)?(g|gen|generator)?(b|ba|b2a|btoa|yx|y2x|ytox)"),
}


@dataclass(frozen=True)
class Found:
    """A generator that was found in ``file``."""

    file: Path
    network: Network


def generators_in(source: Path, direction: Direction, run: Direction) -> dict[Direction, Found]:
    """Return the generators in ``source``, a file or a folder, by the direction in which they translate.

    A single generator in a file is that of ``direction``. Otherwise names tell them apart, in a folder the
    official ones: G_A translates in the direction of the run that is saved there or, if its configuration is
    missing, in that of the new ``run``. Raises UserError if there is no generator, or none that can be told
    apart.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    file = only_file(source)
    if file is not None:
        return _in_file(file, direction, run)
    names = _official_names(source, run)
    files = {each: weights_file(source, _EPOCH, name) for each, name in names.items()}
    found = {each: file for each, file in files.items() if file.exists()}
    undirected = source / f"{_EPOCH}_net_G.pth"
    if not found and undirected.exists():
        found = {direction: undirected}
    if not found:
        wanted = " or ".join(file.name for file in files.values())
        epochs = saved_epochs(source)
        available = listed(epochs, "epochs") if epochs else "none"
        raise UserError(f"{source}: contains no {wanted}; epochs saved there: {available}")
    require_whole(source, _EPOCH, is_running=(source / LOCK).exists())
    return {
        each: Found(file, choose(read_networks(file), file, generator=True)) for each, file in found.items()
    }


def _official_names(folder: Path, run: Direction) -> dict[Direction, str]:
    """Return the official name of the generator of each direction in ``folder``."""
    config = read_config(folder)
    first = run if config is None else config.data.direction
    recipe = make_recipe(TrainConfig() if config is None else config)
    names = {first: recipe.generator("B"), OPPOSITE[first]: recipe.generator("A")}
    return {direction: recipe.official_names[name] for direction, name in names.items()}


def _in_file(file: Path, direction: Direction, run: Direction) -> dict[Direction, Found]:
    networks = read_networks(file)
    generators = [network for network in networks if network.architecture.is_generator]
    if len(generators) <= 1:
        return {direction: Found(file, choose(networks, file, generator=True))}
    first = _direction_of_state(file, run)
    found: dict[Direction, Found] = {}
    for name, each in zip(OPPOSITE, (first, OPPOSITE[first]), strict=True):
        named = _named(generators, name)
        if len(named) == 1:
            found[each] = Found(file, named[0])
    if len(found) < len(OPPOSITE):
        places = listed([network.place for network in generators], "places")
        raise UserError(
            f"{file}: contains {len(generators)} generators ({places}), and their names do not tell which one"
            " translates A to B and which one B to A: save each in a file of its own"
        )
    return found


def _direction_of_state(file: Path, run: Direction) -> Direction:
    """Return the direction of the run whose training state is in ``file``, or ``run`` for another file."""
    contents: Any = load_tensors(file)
    with contextlib.suppress(KeyError, TypeError):
        if contents["config"]["data"]["direction"] in OPPOSITE:
            return contents["config"]["data"]["direction"]
    return run


def _named(generators: Sequence[Network], direction: Direction) -> list[Network]:
    """Return those of ``generators`` whose names say ``direction``, without running averages."""
    named = []
    for network in generators:
        *outer, name = network.place.split(".")
        if "ema" not in outer and _NAMES[direction].fullmatch(re.sub(r"[^a-z0-9]", "", name.lower())):
            named.append(network)
    return named
