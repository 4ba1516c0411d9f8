"""What network a state_dict belongs to, read off its keys and shapes: any of the official ones, in the
spellings that files have.

Files in the wild nest weights under other keys, prefix them (``module.``, ``_orig_mod.``, an attribute's
name), call residual blocks ``block``, or hold running statistics that instance norm kept before PyTorch 0.4.
All that is taken away first, and noted. Then a network is proposed, built without memory, and must fit to the
last key and shape: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.nn.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator

Weights = Mapping[str, Tensor]
_WRAPPER = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod)\.")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_FIRST_LAYERS = ("model.1.weight", "model.model.0.weight", "model.0.weight", "net.0.weight", "model.7.weight")
_UNETS = {7: "unet_128", 8: "unet_256"}
# No network has more; a file that was made to, to take time and memory, is none.
_MOST_BLOCKS, _MOST_LEVELS, _MOST_LAYERS, _MOST_TENSORS, _DEEPEST = 256, 12, 12, 20_000, 8


class UnknownArchitectureError(ValueError):
    """A state_dict that belongs to no network that is known here; the message says which is nearest, and what
    is strange.
    """


@dataclass(frozen=True)
class Architecture:
    """A network's class and arguments. ``notes``: what was done to the keys of the file to read them."""

    kind: type[nn.Module]
    arguments: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def is_generator(self) -> bool:
        return self.kind in (Generator, UnetGenerator)

    @property
    def name(self) -> str:
        """Its official name, or the nearest to one."""
        if self.kind is Generator:
            return f"resnet_{self.arguments['n_blocks']}blocks"
        if self.kind is UnetGenerator:
            downs = self.arguments["num_downs"]
            return _UNETS.get(downs, f"unet of {downs} levels")
        if self.kind is PixelDiscriminator:
            return "pixel"
        layers = self.arguments["n_layers"]
        return "basic" if layers == 3 else f"n_layers {layers}"

    def __str__(self) -> str:
        a = self.arguments
        if self.is_generator:
            width = f"ngf {a['ngf']}, {a['input_nc']} to {a['output_nc']} channels"
        else:
            width = f"ndf {a['ndf']}, {a['input_nc']} channels"
        norm = {"instance": "instance norm", "batch": "batch norm", "none": "no norm"}[a["norm"]]
        words = [width, ("affine " if a["affine"] else "") + norm]
        if self.kind is Generator:
            words += ["dropout"] * a["use_dropout"] + ["resize and convolution"] * (a["upsample"] == "resize")
            words += ["zero-padded blocks"] * (a["padding_type"] == "zero")
        return f"{'generator' if self.is_generator else 'discriminator'} {self.name} ({', '.join(words)})"

    def build(self, impl: str = "auto") -> nn.Module:
        """Return the network with random weights, on the CPU."""
        return self.kind(**self.arguments, impl=impl)

    def settings(self) -> dict[str, Any]:
        """Return the settings of a training configuration that build it. Raises ValueError where there are
        none.
        """
        a = self.arguments
        common = {"norm": a["norm"], "affine": a["affine"]}
        if not self.is_generator:
            named = (
                {"netD": "pixel"}
                if self.kind is PixelDiscriminator
                else {"netD": "n_layers", "n_layers_D": a["n_layers"]}
            )
            return {**common, **({"netD": "basic"} if self.name == "basic" else named), "ndf": a["ndf"]}
        common |= {"netG": self.name, "input_nc": a["input_nc"], "output_nc": a["output_nc"], "ngf": a["ngf"]}
        if self.kind is UnetGenerator:
            if a["num_downs"] not in _UNETS:
                raise ValueError(f"{self}: only unet_128 and unet_256 can be trained here")
            return common
        if a["padding_type"] != "reflect":
            raise ValueError(f"{self}: only reflection-padded blocks can be trained here")
        return {**common, "use_dropout": a["use_dropout"], "upsample": a["upsample"]}


@dataclass(frozen=True)
class Network:
    """One network of a file: where in the file it is ("" for all of it), what it is, and its weights by our
    keys.
    """

    place: str
    architecture: Architecture
    weights: dict[str, Tensor]


# --- What is in a file --------------------------------------------------------------------------------------


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
        raise UnknownArchitectureError(
            f"{f'{place}: ' if place else ''}{len(own):,} tensors, which no network that is known here has"
        )
    if own:
        yield place, own
    for key, value in found.items():
        yield from state_dicts(value, f"{place}.{key}" if place else str(key), (*around, id(found)))


def _prefixes(keys: Mapping[str, Any]) -> list[str]:
    """Return what stands before the first layers of networks among ``keys``: "" or names with a dot at the
    end, outermost ones alone.
    """
    found = {
        key.removesuffix(layer)
        for key in keys
        for layer in _FIRST_LAYERS
        if key == layer or key.endswith(f".{layer}")
    }

    def is_inside(inner: str, outer: str) -> bool:
        return (
            inner != outer and inner.startswith(outer) and inner[len(outer) :].startswith(("model.", "net."))
        )

    return sorted(p for p in found if not any(is_inside(p, other) for other in found))


def _normalised(weights: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """Return ``weights`` by the official keys, and notes of what was changed."""
    notes, renamed = [], dict(weights)
    if any(re.match(r"model\.\d+\.block\.", key) for key in weights):
        notes.append("residual blocks were called block")
        renamed = {
            re.sub(r"^(model\.\d+)\.block\.", r"\1.conv_block.", key): value for key, value in weights.items()
        }
    plain = {key for key in renamed if key.rpartition(".")[2] in _STATISTICS}
    stale = [key for key in plain if _is_stale(key, renamed)]
    if stale:
        notes.append(
            f"{len(stale)} running statistics of instance norms were dropped (they kept some before PyTorch"
            " 0.4)"
        )
    return {key: value for key, value in renamed.items() if key not in stale}, notes


def _is_stale(key: str, weights: Weights) -> bool:
    """Whether the statistics belong to an instance norm without scale and shift: then the convolution before
    it has a bias.
    """
    norm = key.rpartition(".")[0]
    owner, _, index = norm.rpartition(".")
    before = f"{owner}.{int(index) - 1}.bias" if index.isdigit() else ""
    return f"{norm}.weight" not in weights and before in weights


def find_networks(found: Any) -> list[Network]:
    """Return the networks in what a file held: a state_dict, or mappings around some.

    Raises UnknownArchitectureError where there are none; the message names what is nearest, and what is
    strange in it.
    """
    networks: list[Network] = []
    problems: list[tuple[str, UnknownArchitectureError]] = []
    for place, tensors in state_dicts(found):
        stripped = {_WRAPPER.sub("", key): value for key, value in tensors.items()}
        wrappers = sorted({word for key in tensors for word in _WRAPPER.findall(key)})
        prefixes = _prefixes(stripped)
        for prefix in prefixes:
            others = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
            mine = {
                key.removeprefix(prefix): stripped[key]
                for key in stripped
                if key.startswith(prefix) and not key.startswith(others)
            }
            where = ".".join(filter(None, (place, prefix.rstrip("."))))
            try:
                networks.append(_network(where, mine, [*wrappers, prefix]))
            except UnknownArchitectureError as error:
                problems.append((where, error))
    if not networks:
        raise _nearest(found, problems)
    return networks


def _network(where: str, weights: Weights, prefixes: list[str]) -> Network:
    """Return the network of ``weights``. It may be the attribute "model" of something: then its keys look
    like a U-Net's from outside.
    """
    problem = UnknownArchitectureError("")
    inner = (
        {key.removeprefix("model."): value for key, value in weights.items()}
        if all(key.startswith("model.") for key in weights)
        else {}
    )
    for tried, taken_off in ((weights, prefixes), (inner, [*prefixes, "model."])):
        if tried:
            plain, notes = _normalised(tried)
            notes = [f"the prefix {prefix} was taken off" for prefix in taken_off if prefix] + notes
            try:
                return Network(where, recognise(plain, tuple(notes)), plain)
            except UnknownArchitectureError as error:
                problem = problem if str(problem) else error
    raise problem


def _nearest(found: Any, problems: list[tuple[str, UnknownArchitectureError]]) -> UnknownArchitectureError:
    if problems:
        where, error = problems[0]
        return UnknownArchitectureError(f"{f'{where}: ' if where else ''}{error}")
    keys = [key for _, tensors in state_dicts(found) for key in tensors]
    if not keys:
        what = (
            "nothing"
            if isinstance(found, Mapping) and not found
            else f"no tensors, but a {type(found).__name__}"
        )
        return UnknownArchitectureError(f"not a state_dict: it holds {what}")
    return UnknownArchitectureError(
        f"no network that is known here, and none is near: its keys are {_listed(keys)}"
    )


def of_arguments(kind: str, arguments: Mapping[str, Any], weights: Weights) -> Architecture | None:
    """Return the architecture that a file of ours says it has, where it is one of the generators and fits
    ``weights``, else None.
    """
    known = {Generator.__name__: Generator, UnetGenerator.__name__: UnetGenerator}
    if kind not in known:
        return None
    read = recognise(weights).arguments
    told = {name: value for name, value in read.items() if name not in ("use_dropout", "padding_type")}
    fits = all(arguments.get(name) == value for name, value in told.items()) and not _differences(
        known[kind], dict(arguments), weights
    )
    return Architecture(known[kind], dict(arguments)) if fits else None


# --- Which network it is ------------------------------------------------------------------------------------


def recognise(weights: Weights, notes: tuple[str, ...] = ()) -> Architecture:
    """Return the architecture whose state_dict ``weights`` is, by the official keys.

    Raises UnknownArchitectureError where none fits to the last key and shape.
    """
    _refuse_odd_tensors(weights)
    proposals = [
        made for propose in (_resnet, _unet, _pixel, _patch) if (made := propose(weights)) is not None
    ]
    if not proposals:
        raise UnknownArchitectureError(
            f"no network that is known here, and none is near: its keys are {_listed(list(weights))}"
        )
    tried = [
        (_differences(kind, arguments, weights), Architecture(kind, arguments, notes))
        for kind, arguments in proposals
    ]
    differences, best = min(tried, key=lambda pair: len(pair[0]))
    if differences:
        raise UnknownArchitectureError(
            f"no network that is known here; nearest is the {best}, but {_listed(differences, 'differences')}"
        )
    return best


def _refuse_odd_tensors(weights: Weights) -> None:
    """Refuse tensors that a file of weights does not have: they may claim more memory than the file holds."""
    for key, value in weights.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise UnknownArchitectureError(
                f"{key} is no plain tensor: it is sparse, quantized, or without data"
            )
    held = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in weights.values()
    }
    if sum(value.numel() * value.element_size() for value in weights.values()) > sum(held.values()):
        raise UnknownArchitectureError("its tensors claim more than the file holds")
    for key, value in weights.items():
        if not value.is_floating_point() and not key.endswith(_STATISTICS[-1]):
            raise UnknownArchitectureError(
                f"{key} holds {str(value.dtype).removeprefix('torch.')}, and weights are floating point"
            )
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UnknownArchitectureError(
                f"{key} holds numbers that are not finite: the file is damaged, or its training failed"
            )


def _listed(words: list[str], what: str = "keys") -> str:
    more = f" ... ({len(words)} {what})" if len(words) > 3 else ""
    return f"{', '.join(word if len(word) <= 80 else f'{word[:77]}...' for word in words[:3])}{more}"


def _differences(kind: type[nn.Module], arguments: dict[str, Any], weights: Weights) -> list[str]:
    try:
        with torch.device("meta"):
            expected = {key: list(value.shape) for key, value in kind(**arguments).state_dict().items()}
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        return [f"it cannot be built: {str(error).splitlines()[0]}"] * (len(weights) + 1)
    found = {key: list(value.shape) for key, value in weights.items()}
    strange = [f"{key} is strange" for key in found if key not in expected]
    missing = [f"{key} is missing" for key in expected if key not in found]
    other = [
        f"{key} is {found[key]} and not {expected[key]}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    return strange + missing + other


def _dims(weights: Weights, key: str) -> int:
    return weights[key].dim() if key in weights else 0


def _norm(weights: Weights, conv: str, norm: str) -> dict[str, Any]:
    """Return the norm's name and whether it is affine, from the convolution before it and its own keys."""
    affine, tracked = f"{norm}.weight" in weights, f"{norm}.running_mean" in weights
    if f"{conv}.bias" in weights:
        return {"norm": "instance", "affine": affine}
    return {"norm": "batch" if affine or tracked else "none", "affine": False}


def _resnet(weights: Weights) -> tuple[type[nn.Module], dict[str, Any]] | None:
    found = [
        match for key in weights if (match := re.fullmatch(r"model\.(\d+)\.conv_block\.(\d+)\.weight", key))
    ]
    blocks = {int(match[1]) for match in found}
    if (
        _dims(weights, "model.1.weight") != 4
        or (not blocks and _dims(weights, "model.4.weight") != 4)
        or len(blocks) > _MOST_BLOCKS
    ):
        return None
    convs = {int(match[2]) for match in found if weights[match[0]].dim() == 4}
    up, last = f"model.{10 + len(blocks)}.weight", f"model.{17 + len(blocks)}.weight"
    first = weights["model.1.weight"]
    resized = _dims(weights, up) == 4 and weights[up].shape[0] < weights[up].shape[1]
    return Generator, {
        "input_nc": first.shape[1],
        "output_nc": weights[last].shape[0] if _dims(weights, last) == 4 else first.shape[1],
        "ngf": first.shape[0],
        "n_blocks": len(blocks),
        **_norm(weights, "model.1", "model.2"),
        "use_dropout": convs in ({1, 6}, {0, 4}),
        "upsample": "resize" if resized else "transpose",
        "padding_type": "zero" if 0 in convs else "reflect",
    }


def _unet(weights: Weights) -> tuple[type[nn.Module], dict[str, Any]] | None:
    first, last = "model.model.0.weight", "model.model.3.weight"
    if _dims(weights, first) != 4 or _dims(weights, last) != 4:
        return None
    downs = max(key.count("model.") for key in weights) - 1
    if downs > _MOST_LEVELS:
        return None
    return UnetGenerator, {
        "input_nc": weights[first].shape[1],
        "output_nc": weights[last].shape[1],
        "num_downs": downs,
        "ngf": weights[first].shape[0],
        **_norm(weights, "model.model.1.model.1", "model.model.1.model.2"),
    }


def _patch(weights: Weights) -> tuple[type[nn.Module], dict[str, Any]] | None:
    convs = [key for key in weights if re.fullmatch(r"model\.\d+\.weight", key) and weights[key].dim() == 4]
    if _dims(weights, "model.0.weight") != 4 or not 3 <= len(convs) <= _MOST_LAYERS:
        return None
    first = weights["model.0.weight"]
    return Discriminator, {
        "input_nc": first.shape[1],
        "ndf": first.shape[0],
        "n_layers": len(convs) - 2,
        **_norm(weights, "model.2", "model.3"),
    }


def _pixel(weights: Weights) -> tuple[type[nn.Module], dict[str, Any]] | None:
    if _dims(weights, "net.0.weight") != 4:
        return None
    first = weights["net.0.weight"]
    return PixelDiscriminator, {
        "input_nc": first.shape[1],
        "ndf": first.shape[0],
        **_norm(weights, "net.2", "net.3"),
    }
