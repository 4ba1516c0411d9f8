"""Recognise which official network a state_dict belongs to, from its keys and shapes.

A few keys and shapes suggest an architecture. It is built without allocating memory for its weights, and
accepted only if every key and every shape matches: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.errors import one_line, shortened
from fastcyclegan.files.schema import MisfitError, exactly, flag, record, text
from fastcyclegan.nn.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator

Weights = Mapping[str, Tensor]
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_NORMS = {"instance": "instance norm", "batch": "batch norm", "none": "no norm"}
_IN_BLOCK = re.compile(r"model\.(\d+)\.conv_block\.(\d+)\.weight")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# No real network exceeds these limits. A file that does was crafted to waste time and memory.
_MAX_BLOCKS, _MAX_LEVELS, _MAX_LAYERS, _MAX_DIMS = 256, 12, 12, 8


class UnknownArchitectureError(ValueError):
    """A state_dict matches no known network; the message names the closest one and how it differs."""


@dataclass(frozen=True)
class Architecture:
    """A network's class and its constructor arguments.

    ``notes`` lists the changes that were made to the keys of the file to obtain the official ones.
    """

    kind: type[nn.Module]
    arguments: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def is_generator(self) -> bool:
        return self.kind in (Generator, UnetGenerator)

    @property
    def name(self) -> str:
        """The network's official name, or a name in the same style if it has no official one."""
        if self.kind is Generator:
            return f"resnet_{self.arguments['n_blocks']}blocks"
        if self.kind is UnetGenerator:
            return f"unet_{2 ** self.arguments['num_downs']}"
        if self.kind is PixelDiscriminator:
            return "pixel"
        layers = self.arguments["n_layers"]
        if layers == 3:
            return "basic"
        return f"n_layers {layers}"

    def __str__(self) -> str:
        a = self.arguments
        if self.is_generator:
            role = "generator"
            details = [f"ngf {a['ngf']}", f"{a['input_nc']} to {a['output_nc']} channels"]
        else:
            role = "discriminator"
            details = [f"ndf {a['ndf']}", f"{a['input_nc']} channels"]
        norm = _NORMS[a["norm"]]
        if a["affine"]:
            norm = f"affine {norm}"
        details.append(norm)
        if self.kind is Generator:
            if a["use_dropout"]:
                details.append("dropout")
            if a["upsample"] == "resize":
                details.append("resize-convolution")
            if a["downsample"] == "antialias":
                details.append("antialiased downsampling")
            if a["upsample"] == "antialias":
                details.append("antialiased upsampling")
            if a["padding_type"] == "zero":
                details.append("zero-padded blocks")
        return f"{role} {self.name} ({', '.join(details)})"

    def build(self, impl: str = "auto") -> nn.Module:
        """Return the network with random weights, on the CPU."""
        return self.kind(**self.arguments, impl=impl)

    def settings(self) -> dict[str, Any]:
        """Return the training settings that build this network.

        Raises ValueError if no settings build it.
        """
        a = self.arguments
        common = {"norm": a["norm"], "affine": a["affine"]}
        if not self.is_generator:
            common["ndf"] = a["ndf"]
            if self.kind is Discriminator and self.name != "basic":
                return {**common, "netD": "n_layers", "n_layers_D": a["n_layers"]}
            return {**common, "netD": self.name}
        common |= {"netG": self.name, "input_nc": a["input_nc"], "output_nc": a["output_nc"], "ngf": a["ngf"]}
        if self.kind is UnetGenerator:
            return common
        if a["padding_type"] != "reflect":
            raise ValueError(f"{self}: only reflection-padded blocks can be trained with fastcyclegan")
        return {**common, **{name: a[name] for name in ("use_dropout", "upsample", "downsample")}}


def of_arguments(kind: str, arguments: Mapping[str, Any], weights: Weights) -> Architecture | None:
    """Return the architecture that a file of fastcyclegan records as a class name and its arguments.

    Returns None unless the class is one of the generators and the architecture matches ``weights``.
    """
    known = {Generator.__name__: Generator, UnetGenerator.__name__: UnetGenerator}
    if not isinstance(kind, str) or kind not in known:
        return None
    if known[kind] is Generator:
        # Files from before there was a choice do not record it.
        arguments = {"downsample": "stride", **arguments}
    # Keys and shapes do not determine these two reliably.
    free = {"use_dropout": flag, "padding_type": text()}
    found = recognise(weights).arguments.items()
    try:
        record({name: exactly(value) for name, value in found if name not in free}, free)(arguments, "")
    except MisfitError:
        return None
    recorded = Architecture(known[kind], dict(arguments))
    if _differences(recorded, weights):
        return None
    return recorded


def recognise(weights: Weights, notes: tuple[str, ...] = ()) -> Architecture:
    """Return the architecture of the network whose state_dict is ``weights``, with the official keys.

    Raises UnknownArchitectureError if no network matches every key and shape.
    """
    _reject_odd_tensors(weights)
    nearest: Architecture | None = None
    fewest: list[str] = []
    for propose in (_resnet, _unet, _pixel, _patch):
        proposed = propose(weights)
        if proposed is None:
            continue
        kind, arguments = proposed
        architecture = Architecture(kind, arguments, notes)
        differences = _differences(architecture, weights)
        if nearest is None or len(differences) < len(fewest):
            nearest, fewest = architecture, differences
    if nearest is None:
        raise no_close_match(list(weights))
    if fewest:
        shown = listed(fewest, "differences")
        raise UnknownArchitectureError(f"unknown architecture; the closest is the {nearest}, but {shown}")
    return nearest


def no_close_match(keys: Sequence[str]) -> UnknownArchitectureError:
    """Return the error to raise for a state_dict whose ``keys`` resemble those of no known network."""
    return UnknownArchitectureError(
        f"unknown architecture, and no known one is close: its keys are {listed(keys, 'keys')}"
    )


def listed(items: Sequence[str], noun: str) -> str:
    """Return the first three ``items`` as text, with long ones shortened.

    If there are more than three, the text ends with their number, such as "(5 keys)" for the noun "keys".
    """
    text = ", ".join(shortened(item) for item in items[:3])
    if len(items) > 3:
        text += f" ... ({len(items)} {noun})"
    return text


def _reject_odd_tensors(weights: Weights) -> None:
    """Raise UnknownArchitectureError for tensors that do not occur in genuine weights files.

    Such tensors may claim more memory than the file contains.
    """
    for key, value in weights.items():
        is_plain = value.layout == torch.strided and not value.is_quantized and not value.is_nested
        if not is_plain or value.device.type != "cpu":
            raise UnknownArchitectureError(
                f"{shortened(key)} is not a plain tensor: it is sparse, quantized or nested, or has no data"
            )
        if value.dim() > _MAX_DIMS:
            raise UnknownArchitectureError(f"{shortened(key)} has {value.dim()} dimensions")
    claimed = 0
    stored: dict[int, int] = {}
    for value in weights.values():
        claimed += value.numel() * value.element_size()
        storage = value.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
    if claimed > sum(stored.values()):
        raise UnknownArchitectureError("its tensors claim more bytes than the file contains")
    for key, value in weights.items():
        if value.dtype not in _DTYPES and not key.endswith(STATISTICS[-1]):
            kind, known = str(value.dtype), ", ".join(map(str, _DTYPES))
            text = f"{shortened(key)} has the dtype {kind}, but weights must have one of {known}"
            raise UnknownArchitectureError(text.replace("torch.", ""))
        if value.is_floating_point() and not value.isfinite().all():
            raise UnknownArchitectureError(
                f"{shortened(key)} contains values that are not finite: the file is damaged, or its training"
                " failed"
            )


def _differences(architecture: Architecture, weights: Weights) -> list[str]:
    """Describe how ``weights`` differs from the state_dict of ``architecture``, one string per difference."""
    try:
        with torch.device("meta"):
            state = architecture.kind(**architecture.arguments).state_dict()
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        # Report more differences than any network that can be built has, so that this one is never closest.
        return [f"it cannot be built: {one_line(error)}"] * (len(weights) + 1)
    unexpected = [f"{key} is unexpected" for key in weights if key not in state]
    missing = [f"{key} is missing" for key in state if key not in weights]
    reshaped = []
    for key, expected in state.items():
        if key in weights and weights[key].shape != expected.shape:
            reshaped.append(
                f"{key} has the shape {list(weights[key].shape)} instead of {list(expected.shape)}"
            )
    return unexpected + missing + reshaped


# --- Architectures suggested by a few keys and shapes -------------------------------------------------------

_Proposal = tuple[type[nn.Module], dict[str, Any]]


def _dims(weights: Weights, key: str) -> int:
    if key not in weights:
        return 0
    return weights[key].dim()


def _norm(weights: Weights, conv: str, norm: str) -> dict[str, Any]:
    """Derive ``norm`` and ``affine`` from the keys of a norm layer and of the convolution before it."""
    affine, tracked = f"{norm}.weight" in weights, f"{norm}.running_mean" in weights
    if f"{conv}.bias" in weights:
        return {"norm": "instance", "affine": affine}
    if affine or tracked:
        return {"norm": "batch", "affine": False}
    return {"norm": "none", "affine": False}


def _resnet(weights: Weights) -> _Proposal | None:
    blocks: set[int] = set()
    convs: set[int] = set()
    for key, value in weights.items():
        layer = _IN_BLOCK.fullmatch(key)
        if layer is None:
            continue
        blocks.add(int(layer[1]))
        if value.dim() == 4:
            convs.add(int(layer[2]))
    if _dims(weights, "model.1.weight") != 4 or len(blocks) > _MAX_BLOCKS:
        return None
    if not blocks and _dims(weights, "model.4.weight") != 4:
        return None
    # A blur is a layer after each downsampling convolution, or before each upsampling one.
    downsample = "antialias" if "model.7.filt" in weights else "stride"
    up = len(blocks) + (12 if downsample == "antialias" else 10)
    upsample = _upsample(weights, f"model.{up}")
    last = f"model.{up + (9 if upsample == 'antialias' else 7)}.weight"
    ngf, input_nc = weights["model.1.weight"].shape[:2]
    output_nc = input_nc
    if _dims(weights, last) == 4:
        output_nc = weights[last].shape[0]
    return Generator, {
        "input_nc": input_nc,
        "output_nc": output_nc,
        "ngf": ngf,
        "n_blocks": len(blocks),
        **_norm(weights, "model.1", "model.2"),
        "use_dropout": convs in ({1, 6}, {0, 4}),
        "upsample": upsample,
        "downsample": downsample,
        "padding_type": "zero" if 0 in convs else "reflect",
    }


def _upsample(weights: Weights, layer: str) -> str:
    """Return the kind of upsampling that starts with ``layer``."""
    if f"{layer}.filt" in weights:
        return "antialias"
    weight = f"{layer}.weight"
    is_resized = _dims(weights, weight) == 4 and weights[weight].shape[0] < weights[weight].shape[1]
    return "resize" if is_resized else "transpose"


def _unet(weights: Weights) -> _Proposal | None:
    first, last = "model.model.0.weight", "model.model.3.weight"
    if _dims(weights, first) != 4 or _dims(weights, last) != 4:
        return None
    downs = max(key.count("model.") for key in weights) - 1
    if downs > _MAX_LEVELS:
        return None
    return UnetGenerator, {
        "input_nc": weights[first].shape[1],
        "output_nc": weights[last].shape[1],
        "num_downs": downs,
        "ngf": weights[first].shape[0],
        **_norm(weights, "model.model.1.model.1", "model.model.1.model.2"),
    }


def _patch(weights: Weights) -> _Proposal | None:
    convs = [key for key in weights if re.fullmatch(r"model\.\d+\.weight", key) and weights[key].dim() == 4]
    if _dims(weights, "model.0.weight") != 4 or not 3 <= len(convs) <= _MAX_LAYERS:
        return None
    first = weights["model.0.weight"]
    return Discriminator, {
        "input_nc": first.shape[1],
        "ndf": first.shape[0],
        "n_layers": len(convs) - 2,
        **_norm(weights, "model.2", "model.3"),
    }


def _pixel(weights: Weights) -> _Proposal | None:
    if _dims(weights, "net.0.weight") != 4:
        return None
    first = weights["net.0.weight"]
    return PixelDiscriminator, {
        "input_nc": first.shape[1],
        "ndf": first.shape[0],
        **_norm(weights, "net.2", "net.3"),
    }
