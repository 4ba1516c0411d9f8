"""Networks from files: official ones of any age, other projects' with the same networks, runs', and what
``save_pretrained`` wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcyclegan.checkpoints.architecture import UnknownArchitectureError, of_arguments
from fastcyclegan.checkpoints.find_networks import Network, find_networks
from fastcyclegan.checkpoints.run_files import read_config, saved_epochs, weights_file
from fastcyclegan.config import Direction, TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.nn.pretrained import WEIGHTS_FILE
from fastcyclegan.recipes.registry import make_recipe
from fastcyclegan.tensor_files import arguments_in, load_tensors


def read_networks(file: Path) -> list[Network]:
    """Return the networks in ``file``. Raises UserError where it is damaged, holds code, or no network that
    is known here.
    """
    found = load_tensors(file)
    about = arguments_in(file)
    try:
        if "class" in about:
            # What keys and shapes do not tell: how blocks are padded, a U-Net's dropout.
            known = of_arguments(about.pop("class"), about, found)
            if known is not None:
                return [Network("", known, dict(found))]
        return find_networks(found)
    except UnknownArchitectureError as error:
        raise UserError(f"{file}: {error}") from None


def choose(networks: Sequence[Network], file: Path, generator: bool, key: str | None = None) -> Network:
    """Return the one generator (or discriminator) among ``networks`` of ``file``, or the network at ``key``.

    Raises UserError where there is none, or several and no key.
    """
    what = "generator" if generator else "discriminator"
    fitting = [network for network in networks if network.architecture.is_generator == generator]
    places = _places(fitting)
    if key is not None:
        fitting = [network for network in fitting if network.place == key]
        if not fitting:
            raise UserError(f"{file}: no {what} at {key!r}; there is {places}")
    if not fitting:
        raise UserError(f"{file}: not a {what}, but a {networks[0].architecture}")
    if len(fitting) > 1:
        raise UserError(f"{file}: holds {len(fitting)} {what}s, so key must say which: {places}")
    return fitting[0]


def _places(networks: Sequence[Network]) -> str:
    if not networks:
        return "none"
    places = []
    for network in networks:
        if network.place:
            places.append(network.place)
        else:
            places.append("the whole file")
    return ", ".join(places)


def find_weights(weights: Path, direction: Direction | None, epoch: str, ema: bool = False) -> Path:
    """Return the generator's file in a folder (a run's, official results, or of ``save_pretrained``), or
    ``weights`` itself, a file.

    Raises UserError where there is none.
    """
    if not weights.exists():
        raise UserError(f"{weights}: no such file or folder")
    single = _only_file(weights)
    if single is not None:
        if direction is not None or epoch != "latest" or ema:
            chosen = "direction, epoch and ema have nothing to choose"
            raise UserError(f"{single} is one generator's file, so {chosen}; give a run's folder")
        return single
    name = _generator_for(direction, read_config(weights))
    file = weights_file(weights, epoch, name, ema=ema)
    if file.exists():
        return file
    # The official test of one direction has a file of this name.
    undirected = weights / f"{epoch}_net_G.pth"
    if direction is None and not ema and undirected.exists():
        return undirected
    if ema and weights_file(weights, epoch, name).exists():
        raise UserError(f"{file}: no such file: {weights} was not trained with ema")
    there = ", ".join(saved_epochs(weights))
    if not there:
        there = "none"
    raise UserError(f"{file}: no such file; weights of a generator ({name}) in {weights}: {there}")


def _only_file(weights: Path) -> Path | None:
    """Return ``weights``, or what ``save_pretrained`` wrote there; None for a folder of several files."""
    if not weights.is_dir():
        return weights
    pretrained = weights / WEIGHTS_FILE
    if pretrained.exists():
        return pretrained
    return None


def _generator_for(direction: Direction | None, config: TrainConfig | None) -> str:
    """Return the official name of a run's generator that translates in ``direction``: by default the one it
    was trained in.
    """
    if config is None:
        config = TrainConfig()
    target = "B" if direction in (None, config.data.direction) else "A"
    recipe = make_recipe(config)
    return recipe.official_names[recipe.generator(target)]


def load_generator(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    impl: str = "auto",
    dtype: torch.dtype = torch.float32,
    direction: Direction | None = None,
    epoch: str = "latest",
    ema: bool = False,
    key: str | None = None,
) -> nn.Module:
    """Return the generator in ``source``, in eval mode, on ``device`` in ``dtype``; its architecture is read
    off keys and shapes.

    ``source``: a file of weights (official ``*_net_G_A.pth`` of any age, ``netG_A2B.pth``, nested
    checkpoints, safetensors), or a folder (a run, official checkpoints, what ``save_pretrained`` wrote). In a
    folder ``direction`` ("AtoB" or "BtoA", by the training folders), ``epoch`` and ``ema`` choose the file;
    in a file with several generators ``key`` does. No code of the file is run. ``impl`` is as in
    ``Generator``. Raises UserError, with one clear line, for what cannot be read or is no generator that is
    known here, and ValueError for an unknown impl.
    """
    file = find_weights(Path(source), direction, epoch, ema)
    network = choose(read_networks(file), file, generator=True, key=key)
    with torch.device("meta"):  # no time for initial weights that nobody sees
        net = network.architecture.build(impl)
    net.to_empty(device="cpu").load_state_dict(network.weights)
    return net.to(device=device, dtype=dtype).eval()


def settings_of(folder: Path, epoch: str) -> dict[str, Any]:
    """Return the settings of the model whose official files of ``epoch`` are in ``folder``, by their names in
    a configuration.

    Raises UserError for networks that cannot be trained here.
    """
    settings: dict[str, Any] = {}
    recipe = make_recipe(TrainConfig())
    others = [name for name in recipe.networks if name not in recipe.generators]
    for name in (others[0], recipe.generators[0]):
        file = weights_file(folder, epoch, recipe.official_names[name])
        if not file.exists():
            continue
        network = choose(read_networks(file), file, generator=name in recipe.generators)
        try:
            settings |= network.architecture.settings()
        except ValueError as error:
            raise UserError(f"{file}: {error}") from None
    return settings
