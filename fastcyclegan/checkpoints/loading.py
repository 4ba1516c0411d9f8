"""Load networks from files.

The files may come from any version of the official code, from other projects with the same networks, from
runs, or from ``save_pretrained``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcyclegan.checkpoints.architecture import UnknownArchitectureError, listed, of_arguments
from fastcyclegan.checkpoints.find_networks import Network, find_networks
from fastcyclegan.checkpoints.run_files import LOCK, read_config, saved_epochs, weights_file
from fastcyclegan.checkpoints.weight_sets import require_whole
from fastcyclegan.config import Direction, TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.nn.finite import require_representable
from fastcyclegan.nn.pretrained import WEIGHTS_FILE
from fastcyclegan.nn.torch_defaults import require_device, require_dtype, usual_modes
from fastcyclegan.recipes.registry import make_recipe
from fastcyclegan.tensor_files import arguments_in, load_tensors


def read_networks(file: Path) -> list[Network]:
    """Return the networks in ``file``.

    Raises UserError if the file is damaged, contains code, or contains no known network.
    """
    contents = load_tensors(file)
    metadata = arguments_in(file)
    try:
        if "class" in metadata:
            # The file records two things that keys and shapes do not show: how blocks are padded, and whether
            # a U-Net has dropout.
            recorded = of_arguments(metadata.pop("class"), metadata, contents)
            if recorded is not None:
                return [Network("", recorded, dict(contents))]
        return find_networks(contents)
    except UnknownArchitectureError as error:
        raise UserError(f"{file}: {error}") from None


def choose(networks: Sequence[Network], file: Path, generator: bool, key: str | None = None) -> Network:
    """Return the only generator (or discriminator) among the ``networks`` of ``file``, or the one at ``key``.

    Raises UserError if there is none, or if there are several and ``key`` is None.
    """
    role = "generator" if generator else "discriminator"
    fitting = [network for network in networks if network.architecture.is_generator == generator]
    places = _places(fitting)
    if key is not None:
        fitting = [network for network in fitting if network.place == key]
        if not fitting:
            raise UserError(f"{file}: no {role} at {key!r}; available: {places}")
    if not fitting:
        raise UserError(f"{file}: expected a {role}, got a {networks[0].architecture}")
    if len(fitting) > 1:
        raise UserError(f"{file}: contains {len(fitting)} {role}s; set key to one of {places}")
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
    return listed(places, "places")


def find_weights(weights: Path, direction: Direction | None, epoch: str, ema: bool = False) -> Path:
    """Return the weights file of the generator in the folder ``weights``, or ``weights`` if it is a file.

    The folder can be a run, official results, or the output of ``save_pretrained``. Raises UserError if the
    file does not exist.
    """
    if not weights.exists():
        raise UserError(f"{weights}: no such file or folder")
    single = only_file(weights)
    if single is not None:
        if direction is not None or epoch != "latest" or ema:
            unused = "direction, epoch and ema do not apply"
            raise UserError(f"{single} is a single file, so {unused}; pass the folder of a run to use them")
        return single
    name = _generator_for(direction, read_config(weights))
    file = weights_file(weights, epoch, name, ema=ema)
    if file.exists():
        require_whole(weights, epoch, is_running=(weights / LOCK).exists())
        return file
    # The official test model for a single direction uses a file with this name.
    undirected = weights / f"{epoch}_net_G.pth"
    if direction is None and not ema and undirected.exists():
        return undirected
    if ema and weights_file(weights, epoch, name).exists():
        raise UserError(f"{file}: no such file: {weights} was not trained with ema")
    epochs = saved_epochs(weights)
    available = listed(epochs, "epochs") if epochs else "none"
    raise UserError(f"{file}: no weights file for generator {name}; epochs saved in {weights}: {available}")


def only_file(weights: Path) -> Path | None:
    """Return ``weights`` if it is a file, or else the file that ``save_pretrained`` wrote to that folder.

    Returns None for a folder without such a file.
    """
    if not weights.is_dir():
        return weights
    pretrained = weights / WEIGHTS_FILE
    if pretrained.exists():
        return pretrained
    return None


def _generator_for(direction: Direction | None, config: TrainConfig | None) -> str:
    """Return the official name of a run's generator that translates in ``direction``.

    If ``direction`` is None, the direction in which the run was trained is used.
    """
    if config is None:
        config = TrainConfig()
    target = "B" if direction in (None, config.data.direction) else "A"
    recipe = make_recipe(config)
    return recipe.official_names[recipe.generator(target)]


@usual_modes()
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
    """Load the generator in ``source``, in eval mode, on ``device`` in ``dtype``.

    Its architecture is recognised by its keys and shapes. ``source`` is a weights file (official
    ``*_net_G_A.pth`` of any age, ``netG_A2B.pth``, nested checkpoints, safetensors) or a folder (a run,
    official checkpoints, the output of ``save_pretrained``). In a folder, ``direction`` ("AtoB" or "BtoA",
    where A and B are the training folders), ``epoch`` and ``ema`` choose the file. In a file with several
    generators, ``key`` chooses one. No code in the file is run. ``impl`` is as in ``Generator``.

    Raises UserError, with a clear one-line message, if the source cannot be read or is not a known generator,
    and if a weight is not finite or exceeds the range of ``dtype``. Raises ValueError for an unknown impl,
    and TypeError or ValueError for another invalid argument.
    """
    require_dtype(dtype, "load_generator")
    place = require_device(device, "load_generator")
    if direction not in (None, "AtoB", "BtoA"):
        raise ValueError(f"load_generator: direction must be AtoB or BtoA, got {direction!r}")
    file = find_weights(Path(source), direction, epoch, ema)
    network = choose(read_networks(file), file, generator=True, key=key)
    require_representable(network.weights, dtype, file)
    with torch.device("meta"):  # initial weights would be overwritten, so do not compute them
        net = network.architecture.build(impl).to(dtype)
    net.to_empty(device="cpu").load_state_dict(network.weights)
    return net.to(place).eval()


def settings_of(folder: Path, epoch: str) -> dict[str, Any]:
    """Return the model settings that match the official weights files of ``epoch`` in ``folder``.

    The settings have the same names as in a configuration. Raises UserError for networks that cannot be
    trained with fastcyclegan.
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
