"""Load a generator to translate images with, as the flags of a command choose it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fastcyclegan.checkpoints.loading import config_beside, find_weights, load_generator
from fastcyclegan.config import Direction, RunConfig
from fastcyclegan.console import Console
from fastcyclegan.engine import require_impl, resolve_device, resolve_precision, why_not_compiled
from fastcyclegan.engine.devices import has_bf16
from fastcyclegan.errors import UserError
from fastcyclegan.inference.precision_check import choose_precision
from fastcyclegan.inference.translator import Translator, network_to_call, require_file_channels
from fastcyclegan.nn.as_trained import describe_mode, has_masks, without_dropout
from fastcyclegan.nn.networks import computed_by


@dataclass(frozen=True)
class GeneratorChoice:
    """Which generator translates, and how. The fields are flags of translate.py, where they are described."""

    weights: Path
    direction: Direction | None = None
    epoch: str = "latest"
    key: str | None = None
    ema: bool = False
    eval: bool = False
    no_dropout: bool = False
    seed: int | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    impl: Literal["auto", "cpp", "triton", "reference"] = "auto"
    compile: bool = False
    check: bool = False

    @classmethod
    def of(cls, config: Any) -> GeneratorChoice:
        """Return the choice of the flags of a command that has those of the fields which it needs."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: getattr(config, name) for name in names if hasattr(config, name)})


def load_translator(config: GeneratorChoice, console: Console) -> tuple[Translator, str]:
    """Load the generator that ``config`` selects, and return its translator and a summary to print."""
    device = resolve_device(RunConfig(device=config.device))
    resolve_precision(config.precision, device, compiled=False)  # raises if the device lacks bf16
    if config.check and device.type == "cuda" and not has_bf16(device):
        raise UserError("check: this GPU does not support bf16, so there is nothing to compare with fp32")
    require_impl(config.impl, device)
    file = find_weights(config.weights, config.direction, config.epoch, config.ema)
    net = load_generator(file, impl=config.impl, key=config.key)
    require_file_channels(net)
    if config.no_dropout:
        without_dropout(net)
    net = network_to_call(net, device, config.eval)
    compiled = config.compile and _can_compile(net, device, console)
    precision, why = str(config.precision), ""
    if precision == "auto":
        precision, why = choose_precision(net, device, compiled)
    seed = _seed(config, file)
    translator = Translator(net, device, precision, console.log, compiled=compiled, seed=seed)
    mode = describe_mode(net)
    return translator, f"with {file} on {device} in {precision}{f' ({why})' if why else ''}{mode}"


def _seed(config: GeneratorChoice, file: Path) -> int:
    """Return the seed of the masks: the one that is asked for, or that of the run that wrote ``file``."""
    if config.seed is not None:
        return config.seed
    run = config_beside(file)
    return 0 if run is None else run.run.seed


def _can_compile(net: nn.Module, device: torch.device, console: Console) -> bool:
    """Return whether torch.compile can compile ``net``. Prints the reason if it cannot."""
    problem = "the kernels compute the network" if computed_by(net) == "triton" else why_not_compiled(device)
    if has_masks(net):
        problem = (
            "the masks of dropout depend on the names of the images (--no_dropout or --eval turn it off)"
        )
    if problem:
        console.log(f"--compile: {problem}; images are translated uncompiled")
    else:
        console.log(
            "--compile: the first image of each size includes compilation, which takes up to a minute; later"
            " runs use the cache"
        )
    return not problem
