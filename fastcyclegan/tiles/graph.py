"""Describe a network as maps that are computed from one another, to compute it window by window.

``graph_of`` knows the networks of this package, of whatever class their layers are as long as they compute
what the official ones compute, and ``nn.Sequential`` of the same layers. Weights are read when a node is
computed, so a graph stays valid when they change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.errors import UserError
from fastcyclegan.kernels._norm import Norm
from fastcyclegan.nn.as_trained import KeyedDropout
from fastcyclegan.nn.chains import Chain
from fastcyclegan.nn.layer_checks import activation, is_norm, untouched
from fastcyclegan.nn.layers import FloatTanh, InstanceNormAct
from fastcyclegan.tiles.calls import unpadded
from fastcyclegan.tiles.nodes import (
    Blurred,
    BlurredUp,
    Convolved,
    Dropped,
    Image,
    Joined,
    Node,
    Normalised,
    Padded,
    Pointwise,
    Repeated,
    Summed,
    Transposed,
)

_PADS = {
    nn.ReflectionPad2d: "reflect",
    nn.ReplicationPad2d: "replicate",
    nn.ZeroPad2d: "zeros",
}
_POINTWISE = (
    nn.Tanh,
    FloatTanh,
    nn.Sigmoid,
    nn.SiLU,
    nn.GELU,
    nn.ELU,
    nn.SELU,
    nn.Softplus,
    nn.Hardtanh,
    nn.PReLU,
)
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation mode


class ForeignLayerError(UserError):
    """A network has a layer of which it is not known which pixels it reads."""


def graph_of(net: nn.Module, channels: int) -> tuple[Image, Node]:
    """Return the image [1, channels, H, W] and the result of ``net``, which is in evaluation mode.

    Raises ForeignLayerError, which names the layer, if the network cannot be described.
    """
    image = Image("the image", (), channels)
    return image, _computed(_module(net, type(net).__name__, image, None))


def _computed(x: Node) -> Node:
    """Return x as a map that a pass can compute, which the image itself is not."""
    return Pointwise(x.name, (x,), x.channels, lambda t: t) if isinstance(x, Image) else x


def _foreign(layer: nn.Module, name: str, why: str | None = None) -> ForeignLayerError:
    kind = type(layer).__name__
    if why is None:
        why = "has hooks or a forward of its own" if isinstance(layer, _KNOWN) else "is not a layer of ours"
    return ForeignLayerError(f"exact tiles: {name} ({kind}) {why}, so which pixels it reads is not known")


def _module(layer: nn.Module, name: str, x: Node, following: nn.Module | None) -> Node:
    """Return the map that ``layer`` computes from x."""
    if not untouched(layer, type(layer)):
        raise _foreign(layer, name)
    if _is_block(layer, *_NETWORKS):
        inner: Any = layer.net if isinstance(layer, reference.PixelDiscriminator) else layer.model
        return _module(inner, f"{name}.model", x, None)
    if isinstance(layer, nn.Sequential) and type(layer).forward in (nn.Sequential.forward, Chain.forward):
        return _sequence(layer, name, x)
    if _is_block(layer, reference.ResidualBlock):
        block: Any = layer
        return _sum(_module(block.conv_block, f"{name}.conv_block", x, None), x, name)
    if _is_block(layer, reference.UnetBlock):
        return _level(layer, name, x)
    for kinds, describe in _LAYERS:
        if type(layer) in kinds:
            return describe(layer, name, x, following)
    raise _foreign(layer, name)


def _is_block(layer: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether ``layer`` is a block, or a network, of one of these kinds with a forward of ours."""
    forward: Any = type(layer).forward
    return isinstance(layer, kinds) and forward.__module__.startswith("fastcyclegan.")


def _sequence(layers: Any, name: str, x: Node) -> Node:
    # named_children would leave out a layer's second use.
    children: list[tuple[str, nn.Module]] = list(layers._modules.items())
    after = [*(layer for _, layer in children[1:]), None][: len(children)]
    covered: nn.Module | None = None
    for (part, layer), following in zip(children, after, strict=True):
        if covered is not None and layer is covered and untouched(covered, type(covered)):
            covered = None
            continue
        x = _module(layer, f"{name}.{part}", x, following)
        covered = x.following if isinstance(x, (Convolved, Transposed)) and _is_tanh(x.following) else None
    return x


def _is_tanh(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.Tanh)


def _level(block: Any, name: str, x: Node) -> Node:
    """Return the map of a level of a U-Net: its input and what comes from below, or at the top the latter."""
    skip = getattr(type(block), "skip", None)
    if skip is not None and not skip.__module__.startswith("fastcyclegan."):
        raise _foreign(block, name)
    y = _module(block.model, f"{name}.model", x, None)
    if block.outermost:
        return y
    return Joined(name, (x, y), x.channels + y.channels)


def _sum(y: Node, x: Node, name: str) -> Node:
    if isinstance(y, Normalised) and len(y.inputs) == 1:
        return replace(y, inputs=(*y.inputs, x))
    return Summed(name, (y, x), x.channels)


# --- Layers -------------------------------------------------------------------------------------------------


def _pad(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    left, right, top, bottom = layer.padding
    return Padded(name, (x,), x.channels, (top, left), (bottom, right), _PADS[type(layer)])


def _padded(x: Node, name: str, amount: tuple[int, int], mode: str) -> Node:
    return Padded(name, (x,), x.channels, amount, amount, mode) if any(amount) else x


def _conv(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    modes = ("zeros", "reflect", "replicate")
    if layer.padding_mode not in modes:
        raise _foreign(layer, name, f"pads in the mode {layer.padding_mode}")
    # As in PyTorch, which reads the other attribute for zeros, and this one for the other modes.
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        (top, left), (bottom, right) = layer.padding, layer.padding
    if any((left, right, top, bottom)):
        x = Padded(name, (x,), x.channels, (top, left), (bottom, right), layer.padding_mode)
    return Convolved(name, (x,), layer.out_channels, unpadded(layer), _fused(following))


def _fused(following: nn.Module | None) -> nn.Module | None:
    """Return the layer after a convolution if it matters to the convolution: a norm, or a tanh of ours."""
    if following is None or is_norm(following) or untouched(following, FloatTanh):
        return following
    return None


def _resized(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    larger = Repeated(name, (x,), x.channels, 2)
    bordered = _padded(larger, name, (1, 1), "reflect")
    return Convolved(name, (bordered,), layer.out_channels, unpadded(layer), _fused(following))


def _transposed(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    return Transposed(name, (x,), layer.out_channels, layer, _fused(following))


def _blurred(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    return Blurred(name, (_padded(x, name, (1, 1), "reflect"),), x.channels, lambda: layer.filt)


def _blurred_up(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    return BlurredUp(name, (_padded(x, name, (1, 1), "replicate"),), x.channels, lambda: layer.filt, 3)


def _norm(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    if layer.track_running_stats:
        return Pointwise(name, (x,), x.channels, layer)
    act, slope = getattr(layer, "act", "none"), getattr(layer, "slope", 0.0)
    return Normalised(
        name, (_computed(x),), x.channels, lambda: Norm(layer.weight, layer.bias, layer.eps, act, slope)
    )


def _batch_norm(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    if layer.running_mean is None:
        raise ForeignLayerError(
            f"exact tiles: {name} ({type(layer).__name__}) has no running statistics, so its result depends"
            " on the other images of a batch"
        )
    return Pointwise(name, (x,), x.channels, layer)


def _act(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    act = activation(layer)
    if act is None:
        raise _foreign(layer, name)
    return _activated(x, name, *act)


def _activated(x: Node, name: str, act: str, slope: float) -> Node:
    """Return x after ReLU or LeakyReLU, within the norm before it if there is one."""
    if isinstance(x, Joined):  # ReLU of both parts: the skip's then belongs to its norm
        parts = tuple(_activated(part, name, act, slope) for part in x.inputs)
        return replace(x, inputs=parts)
    if isinstance(x, Normalised) and len(x.inputs) == 1 and x.norm().act == "none":
        plain = x.norm
        return replace(x, norm=lambda: replace(plain(), act=act, slope=slope))
    if act == "relu":
        return Pointwise(name, (x,), x.channels, F.relu)
    return Pointwise(name, (x,), x.channels, lambda t: F.leaky_relu(t, slope))


def _pointwise(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    return Pointwise(name, (x,), x.channels, _not_in_place(layer))


def _not_in_place(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    if not getattr(layer, "inplace", False):
        return layer
    return lambda x: layer(x.clone())


def _identity(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    return x


def _keyed_dropout(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    return Dropped(name, (x,), x.channels, layer) if layer.p > 0 else x


def _upsampled(layer: Any, name: str, x: Node, following: nn.Module | None) -> Node:
    factor = layer.scale_factor
    if layer.mode != "nearest" or not isinstance(factor, (int, float)) or factor != int(factor):
        raise _foreign(layer, name, "does not repeat pixels a whole number of times")
    return Repeated(name, (x,), x.channels, int(factor))


_Describe = Callable[[Any, str, Node, "nn.Module | None"], Node]
_LAYERS: tuple[tuple[tuple[type[nn.Module], ...], _Describe], ...] = (
    (tuple(_PADS), _pad),
    ((nn.Conv2d,), _conv),
    ((reference.ResizeConv2d,), _resized),
    ((nn.ConvTranspose2d,), _transposed),
    ((reference.AntialiasedDownsample,), _blurred),
    ((reference.AntialiasedUpsample,), _blurred_up),
    ((nn.InstanceNorm2d, reference.InstanceNorm2d, InstanceNormAct), _norm),
    ((nn.BatchNorm2d,), _batch_norm),
    ((nn.ReLU, nn.LeakyReLU), _act),
    (_POINTWISE, _pointwise),
    (_IDENTITIES, _identity),
    ((KeyedDropout,), _keyed_dropout),
    ((nn.Upsample,), _upsampled),
)
_NETWORKS = (
    reference.Generator,
    reference.UnetGenerator,
    reference.Discriminator,
    reference.PixelDiscriminator,
)
_KNOWN = (
    *(kind for kinds, _ in _LAYERS for kind in kinds),
    nn.Sequential,
    reference.ResidualBlock,
    reference.UnetBlock,
    *_NETWORKS,
)


def order_of(result: Node) -> list[Node]:
    """Return all nodes that ``result`` depends on, and itself, each after its inputs."""
    order: dict[Node, None] = {}
    waiting = [(result, False)]
    while waiting:
        node, is_ready = waiting.pop()
        if is_ready:
            order[node] = None
        elif node not in order:
            waiting.append((node, True))
            waiting += [(one, False) for one in reversed(node.inputs)]
    return list(order)
