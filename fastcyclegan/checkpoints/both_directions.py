"""Find the generators of both directions in files and folders, so that training can start from them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcyclegan.checkpoints.architecture import listed
from fastcyclegan.checkpoints.find_networks import Network
from fastcyclegan.checkpoints.loading import (
    OwnNetwork,
    UnknownFileError,
    choose,
    only_file,
    own_network,
    read_networks,
)
from fastcyclegan.checkpoints.run_files import LOCK, read_config, saved_epochs, weights_file
from fastcyclegan.checkpoints.weight_sets import require_whole
from fastcyclegan.config import Direction, default_config
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.recipe import Recipe
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
    """A generator that was found in ``file``.

    ``own`` is set if it is a network that its recipe builds, and otherwise ``network``, which was recognised.
    """

    file: Path
    network: Network | None = None
    own: OwnNetwork | None = None

    @property
    def weights(self) -> Mapping[str, Tensor]:
        if self.own is not None:
            return self.own.net.state_dict()
        assert self.network is not None
        return self.network.weights

    @property
    def notes(self) -> Sequence[str]:
        """What was changed to read the file."""
        return () if self.network is None else self.network.architecture.notes

    def settings(self) -> dict[str, Any]:
        """Return the settings that build the network. Raises ValueError if there are none."""
        if self.own is not None:
            return self.own.settings
        assert self.network is not None
        return self.network.architecture.settings()

    def __str__(self) -> str:
        return str(self.own) if self.network is None else str(self.network.architecture)


def _found(file: Path) -> Found:
    """Return the only generator in ``file``."""
    own = own_network(file)
    if own is None:
        return Found(file, choose(read_networks(file), file, generator=True))
    if not own.is_generator:
        raise UserError(f"{file}: expected a generator, got {own}")
    return Found(file, own=own)


def generators_in(
    source: Path, direction: Direction, run: Direction, recipe: Recipe | None = None
) -> dict[Direction, Found]:
    """Return the generators in ``source``, a file or a folder, by the direction in which they translate.

    A single generator in a file is that of ``direction``. Otherwise names tell them apart, in a folder the
    official ones: G_A translates in the direction of the run that is saved there or, if its configuration is
    missing, in that of the new ``run``, and the names are those of its ``recipe``. Raises UserError if there
    is no generator, or none that can be told apart.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    file = only_file(source)
    if file is not None:
        return _in_file(file, direction, run)
    names = _official_names(source, run, default_config().make_recipe() if recipe is None else recipe)
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
    return {each: _found(file) for each, file in found.items()}


def _official_names(folder: Path, run: Direction, new: Recipe) -> dict[Direction, str]:
    """Return the official name of the generator of each direction in ``folder``.

    Without a configuration there, the names are those of the recipe of the ``new`` run.
    """
    config = read_config(folder)
    first = run if config is None else config.data.direction
    recipe = new if config is None else config.make_recipe()
    names: dict[Direction, str] = {}
    for direction, name in recipe.directions.items():
        names[first if direction == "AtoB" else OPPOSITE[first]] = recipe.official_names[name]
    return names


def _in_file(file: Path, direction: Direction, run: Direction) -> dict[Direction, Found]:
    try:
        networks = read_networks(file)
    except UnknownFileError:
        if own_network(file) is None:
            raise
        return {direction: _found(file)}
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
