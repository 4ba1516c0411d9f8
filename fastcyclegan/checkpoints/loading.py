"""Load networks from files.

The files may come from any version of the official code, from other projects with the same networks, from
runs, or from ``save_pretrained``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.checkpoints.architecture import (
    Architecture,
    UnknownArchitectureError,
    listed,
    of_arguments,
)
from fastcyclegan.checkpoints.find_networks import Network, find_networks
from fastcyclegan.checkpoints.run_files import (
    LOCK,
    PREVIOUS,
    STATE,
    fit_weights,
    is_weights_file,
    network_of,
    read_config,
    saved_epochs,
    weights_file,
)
from fastcyclegan.checkpoints.weight_sets import require_whole
from fastcyclegan.config import Direction, ModelConfig, TrainConfig
from fastcyclegan.errors import UserError
from fastcyclegan.kernels.dispatch import check_impl
from fastcyclegan.nn.finite import require_representable
from fastcyclegan.nn.networks import UnetGenerator, is_ours
from fastcyclegan.nn.pretrained import AS_TRAINED, WEIGHTS_FILE
from fastcyclegan.nn.torch_defaults import require_device, require_dtype, usual_modes
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.recipes.registry import BUILT_IN, recipe_class
from fastcyclegan.settings.recipe import ModelSettings
from fastcyclegan.tensor_files import arguments_in, load_tensors


def read_networks(file: Path) -> list[Network]:
    """Return the networks in ``file``.

    Raises UserError if the file is damaged, contains code, or contains no known network.
    """
    contents = load_tensors(file)
    metadata = arguments_in(file)
    metadata.pop(AS_TRAINED, None)
    try:
        if "class" in metadata:
            # The file records two things that keys and shapes do not show: how blocks are padded, and whether
            # a U-Net has dropout.
            recorded = of_arguments(metadata.pop("class"), metadata, contents)
            if recorded is not None:
                return [Network("", recorded, dict(contents))]
        return find_networks(contents)
    except UnknownArchitectureError as error:
        raise UnknownFileError(f"{file}: {error}") from None


class UnknownFileError(UserError):
    """A file that contains no known network."""


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
    name = _generator_for(direction, weights)
    file = weights_file(weights, epoch, name, ema=ema)
    if file.exists():
        require_whole(weights, epoch, is_running=(weights / LOCK).exists())
        return file
    run = read_config(weights)
    has_averages = isinstance(run, TrainConfig) and run.optim.ema > 0
    if ema and not has_averages and weights_file(weights, epoch, name).exists():
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


def _generator_for(direction: Direction | None, weights: Path) -> str:
    """Return the official name of the generator in the folder ``weights`` that translates in ``direction``.

    If ``direction`` is None, the direction in which the run was trained is used.
    """
    config, recipe = read_config(weights), recipe_in(weights)
    trained: Direction = "AtoB" if config is None else config.data.direction
    of_model: Direction = "AtoB" if direction in (None, trained) else "BtoA"
    if recipe.directions and of_model not in recipe.directions:
        known = f", which translates {trained}" if config is not None else ""
        raise UserError(f"{weights} has a single generator{known}: direction cannot be {direction}")
    made = recipe() if config is None else config.make_recipe()
    return made.official_names[made.generator(of_model)]


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
    own = _own_generator(file, impl, dtype) if Path(source).is_dir() else None
    if own is not None:
        return own.to(place).eval()
    return _recognised(file, impl, dtype, key).to(place).eval()


def read_weights(file: Path, net: nn.Module, *, generator: bool = True) -> Mapping[str, Tensor]:
    """Return the weights in ``file`` that are meant for ``net``, a network of a recipe.

    An official network (a ``generator`` or a discriminator) is found in the file, whatever version of the
    code wrote it. For any other network, the file must be its state_dict. Raises UserError if it is not.
    """
    if is_ours(net):
        return choose(read_networks(file), file, generator=generator).weights
    weights = load_tensors(file)
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{file}: not the weights of a network")
    return weights


@dataclass(frozen=True)
class OwnNetwork:
    """A network of a run, as its recipe builds it. ``settings`` are those of the recipe's networks."""

    name: str
    recipe: Recipe
    net: nn.Module
    settings: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name} of the recipe {self.recipe.name}"

    @property
    def is_generator(self) -> bool:
        return self.name in self.recipe.generators


def own_network(file: Path, impl: str = "auto") -> OwnNetwork | None:
    """Return the network in a weights file of a run, as its recipe builds it, on the CPU.

    Returns None if the file is not in the folder of a run, and for the official networks, which are
    recognised by their weights. Raises UserError if the weights do not fit.
    """
    config = read_config(file.parent) if is_weights_file(file) else None
    if config is None:
        return None
    recipe = config.make_recipe()
    name = network_of(file, recipe)
    if name is None:
        return None
    with torch.device("meta"):  # initial weights would be overwritten, so do not compute them
        net = recipe.build_networks()[name]
    if is_ours(net):
        return None
    net.to_empty(device="cpu")
    fit_weights(net, read_weights(file, net), file, f"{recipe.architecture} of the run")
    recipe.mark_generators({name: net})
    check_impl(impl)
    settings = {setting.name: getattr(config.model, setting.name) for setting in fields(config.model)}
    return OwnNetwork(name, recipe, net, settings)


def _own_generator(file: Path, impl: str, dtype: torch.dtype) -> nn.Module | None:
    """Return the generator that ``own_network`` finds in ``file``, in ``dtype``, or None."""
    own = own_network(file, impl)
    if own is None:
        return None
    if not own.is_generator:
        raise UserError(f"{file}: expected a generator, got {own}")
    require_representable(own.net.state_dict(), dtype, file)
    return own.net.to(dtype)


def _recognised(file: Path, impl: str, dtype: torch.dtype, key: str | None) -> nn.Module:
    """Return the generator in ``file``, recognised by its weights, on the CPU in ``dtype``."""
    try:
        networks = read_networks(file)
    except UnknownFileError:
        own = _own_generator(file, impl, dtype) if key is None else None
        if own is None:
            raise
        return own
    network = choose(networks, file, generator=True, key=key)
    require_representable(network.weights, dtype, file)
    generators = [each for each in networks if each.architecture.is_generator]
    architecture, as_trained = _as_its_recipe_translates(network, file, len(generators) == 1)
    with torch.device("meta"):  # initial weights would be overwritten, so do not compute them
        net = architecture.build(impl).to(dtype)
    net.to_empty(device="cpu").load_state_dict(network.weights)
    net.translates_as_trained = as_trained  # type: ignore[assignment]
    return net


def _as_its_recipe_translates(network: Network, file: Path, is_alone: bool) -> tuple[Architecture, bool]:
    """Return the architecture of the generator ``network`` in ``file``, and whether it translates as trained.

    The weights of a U-Net do not show whether it has dropout; the configuration of its run does. Without
    that, generators of pix2pix are recognised by the official name of their files, or by being U-Nets with
    batch norm. The names of CycleGAN's generators tell that a network is not one of these, and so does
    another generator in the same file (``is_alone``).
    """
    found, config = network.architecture, config_beside(file)
    is_unet, recorded = found.kind is UnetGenerator, arguments_in(file)
    if config is not None:
        as_trained, model = config.recipe.translates_as_trained, config.model
        dropout = isinstance(model, ModelConfig) and model.has_dropout
    elif recorded:
        as_trained = recorded.get(AS_TRAINED) is True
        dropout = recorded.get("use_dropout") is True
    else:
        is_named = re.fullmatch(r"\w+_net_G\.pth", file.name) is not None
        is_cyclegan = re.fullmatch(r"\w+_net_G_[AB](_ema)?\.pth", file.name) is not None or not is_alone
        as_trained = is_named or (is_unet and found.arguments["norm"] == "batch" and not is_cyclegan)
        dropout = as_trained
    if is_unet and "use_dropout" not in found.arguments:
        arguments = {**found.arguments, "use_dropout": dropout}
        return replace(found, arguments=arguments), as_trained
    return found, as_trained


def config_beside(file: Path) -> TrainConfig | None:
    """Return the configuration of the run that wrote ``file``, if that is in its folder."""
    if is_weights_file(file) or file.name in (STATE, PREVIOUS):
        return read_config(file.parent)
    return None


def recipe_in(folder: Path) -> type[Recipe]:
    """Return the recipe of the run in ``folder`` or, without a configuration, the one that its files are
    named after, by default the default recipe.
    """
    config = read_config(folder)
    if config is not None:
        return config.recipe
    for recipe in BUILT_IN:
        official = recipe().official_names
        if any(any(folder.glob(f"*_net_{official[name]}.pth")) for name in recipe.generators):
            return recipe
    return recipe_class(ModelSettings.model)


def settings_of(folder: Path, epoch: str, recipe: Recipe) -> dict[str, Any]:
    """Return the settings of the networks of ``recipe`` in the official weights files of ``epoch``.

    The settings have the same names as in a configuration. Raises UserError for networks that cannot be
    trained with fastcyclegan.
    """
    settings: dict[str, Any] = {}
    for name in (recipe.discriminators[0], recipe.generators[0]):
        file = weights_file(folder, epoch, recipe.official_names[name])
        if not file.exists():
            continue
        network = choose(read_networks(file), file, generator=name in recipe.generators)
        try:
            settings |= network.architecture.settings()
        except ValueError as error:
            raise UserError(f"{file}: {error}") from None
    return recipe.model.of_file(settings) if settings else {}
