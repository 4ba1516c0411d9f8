"""Start the networks of a new run from generators in files (``--init_from``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcyclegan.checkpoints.architecture import UnknownArchitectureError, recognise
from fastcyclegan.checkpoints.both_directions import OPPOSITE, Found, generators_in
from fastcyclegan.checkpoints.run_files import differences
from fastcyclegan.config import Direction, ModelConfig, TrainConfig, with_changes
from fastcyclegan.errors import UserError
from fastcyclegan.nn.finite import require_representable

FRESH = "fresh"
# More differing tensors than this are counted instead of listed.
_FEW = 4


def _directed(config: TrainConfig) -> list[tuple[Path, Direction]]:
    """Return the files and folders to start from, and the direction of a single generator in each."""
    finetune = config.finetune
    directed: list[tuple[Path, Direction]] = []
    if finetune.init_from is not None:
        # A recipe with one generator has that of the run's direction.
        directions = list(OPPOSITE) if len(config.recipe.directions) > 1 else [config.data.direction]
        if len(finetune.init_from) > len(directions):
            raise UserError(
                f"--init_from: {config.recipe.title} has one generator, got {len(finetune.init_from)} files"
            )
        directed += zip(finetune.init_from, directions, strict=False)
    if finetune.init_from_B is not None and len(config.recipe.directions) == 1:
        raise UserError(f"--init_from_B: {config.recipe.title} has one generator, which --init_from names")
    if finetune.init_from_B is not None:
        directed.append((finetune.init_from_B, "BtoA"))
    return directed


def sources(config: TrainConfig) -> list[Path]:
    """Return the files and folders to start from."""
    return [source for source, _ in _directed(config)]


def _found(config: TrainConfig) -> dict[str, Found]:
    """Return the generators to start from, by the names of the networks. Directions refer to the folders."""
    found: dict[Direction, Found] = {}
    for source, direction in _directed(config):
        generators = generators_in(source, direction, config.data.direction, config.make_recipe())
        if source == config.finetune.init_from_B:  # nothing else is asked of it
            if direction not in generators:
                raise UserError(f"{source}: contains no generator from B to A")
            generators = {direction: generators[direction]}
        if len(config.recipe.directions) == 1:
            generators = _of_direction(generators, config.data.direction)
        for each, generator in generators.items():
            if each in found:
                raise UserError(
                    f"the generator from {_words(each)} is given twice: {found[each].file} and"
                    f" {generator.file}"
                )
            found[each] = generator
    recipe = config.make_recipe()
    names = {}
    for direction, generator in found.items():
        of_model: Direction = "AtoB" if direction == config.data.direction else "BtoA"
        names[recipe.generator(of_model)] = generator
    return names


def _of_direction(generators: dict[Direction, Found], wanted: Direction) -> dict[Direction, Found]:
    """Return the one of ``generators`` that translates in the ``wanted`` direction, for a run of a single
    generator.
    """
    if wanted not in generators:
        (other,) = generators
        raise UserError(
            f"{generators[other].file} translates from {_words(other)}, but this run trains a generator from"
            f" {_words(wanted)}: set --direction {other}"
        )
    return {wanted: generators[wanted]}


def _words(direction: Direction) -> str:
    return direction.replace("to", " to ")


def _settings(config: TrainConfig, name: str, found: Found) -> dict[str, Any]:
    """Return the model settings that build the generator ``found`` as the network ``name``."""
    try:
        settings = found.settings()
    except ValueError as error:
        raise UserError(f"{found.file}: {error}") from None
    translates_B = name != config.recipe.directions.get("AtoB")
    if found.own is None and translates_B:
        settings |= {"input_nc": settings["output_nc"], "output_nc": settings["input_nc"]}
    return settings


def before_files(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """Return ``config``, the defaults beside the settings in ``given``, without a U-Net by default.

    If training starts from files, these determine the generator, so sizes of images that do not fit the
    default one are no mistake.
    """
    starts_from_files = not {"init_from", "init_from_B"}.isdisjoint(given)
    model = config.model
    if not starts_from_files or "netG" in given or not isinstance(model, ModelConfig) or not model.levels:
        return config
    return with_changes(config, {"model": {"netG": "resnet_9blocks"}})


def with_architecture_of_files(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """Return ``config`` with the settings of the generators in the files that it starts from.

    The settings in ``given`` stay as they are. Raises UserError if a file cannot be used.
    """
    if not config.finetune.is_from_files:
        return config
    kept = set(given)
    if kept & {"no_dropout", "use_dropout"}:
        kept |= {"no_dropout", "use_dropout"}
    settings: dict[str, Any] = {}
    for name, found in _found(config).items():
        settings = {**_settings(config, name, found), **settings}
    if isinstance(config.model, ModelConfig):
        settings = config.model.of_file(settings)
    own = {setting.name for setting in dataclasses.fields(config.model)} - kept - {"model", "impl"}
    return with_changes(config, {"model": {key: value for key, value in settings.items() if key in own}})


def start_from_files(config: TrainConfig, nets: Mapping[str, nn.Module]) -> dict[str, str]:
    """Load the generators that ``config`` starts from into ``nets``. Return the origin of each network.

    Without such files, nothing is done and {} is returned. Raises UserError, before anything is loaded, if a
    file cannot be used, or contains another network than ``config`` describes.
    """
    if not config.finetune.is_from_files:
        return {}
    found = _found(config)
    for name, generator in found.items():
        _require_fitting(name, nets[name], generator)
    origins = dict.fromkeys(config.recipe.networks, FRESH)
    for name, generator in found.items():
        weights = generator.weights
        nets[name].load_state_dict(weights)
        origins[name] = f"from {generator.file}, {len(weights)} tensors"
        if generator.notes:
            origins[name] += f" ({', '.join(generator.notes)})"
    return origins


def require_fitting_files(config: TrainConfig) -> None:
    """Raise UserError if ``config`` starts from files that contain other networks than it describes."""
    if config.finetune.is_from_files:
        with torch.device("meta"):
            nets = config.make_recipe().build_networks()
        for name, generator in _found(config).items():
            _require_fitting(name, nets[name], generator)


def _require_fitting(name: str, net: nn.Module, found: Found) -> None:
    """Raise UserError if the weights of ``found`` do not fit ``net``."""
    weights = found.weights
    require_representable(weights, torch.float32, found.file)
    problems = differences(net.state_dict(), weights)
    if not problems:
        return
    try:
        shapes = {key: torch.zeros(value.shape) for key, value in net.state_dict().items()}
        expected = str(recognise(shapes))
    except UnknownArchitectureError:
        expected = type(net).__name__
    detail = f"{len(problems)} tensors differ"
    if len(problems) <= _FEW:
        detail = ", ".join(problems)
    raise UserError(f"{found.file}: {name} is a {expected}, but the file contains a {found}: {detail}")


def described(origins: Mapping[str, str]) -> str:
    """Return the ``origins`` of networks as text, with those of the same origin together."""
    together: dict[str, list[str]] = {}
    for name, origin in origins.items():
        together.setdefault(origin, []).append(name)
    return "; ".join(f"{', '.join(names)}: {origin}" for origin, names in together.items())
