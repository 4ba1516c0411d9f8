"""The pieces that the networks here are built from: chains of layers that run in fewer passes than there are
layers.

A ``Chain`` holds the layers of the official networks, one child each, so that names, keys and repr are
theirs, and runs them in fewer passes: norm + activation, the reflected border and the convolution after them
become one operator, and a convolution's bias that the next norm takes out again is not computed (its gradient
is zero, which is what it is). On a device that the kernels do not serve, the layers run one by one. A layer
with hooks, or of another class than the official one, is called as the module that it is.

Every walk goes over the chains of P networks at once, P being 1 for a network by itself; ``deferred.py`` has
what runs through them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.kernels.backend_table import backend_of
from fastcyclegan.kernels.dispatch import resolve_impl
from fastcyclegan.kernels.residual_block import residual_block
from fastcyclegan.nn.deferred import Deferred, Layers
from fastcyclegan.nn.layer_checks import activation, border_of, compute_dtype, is_conv, is_norm, untouched
from fastcyclegan.nn.layers import FloatTanh


class Chain(nn.Sequential):
    """An ``nn.Sequential`` of the official layers that the kernels run in fewer passes; same function, same
    state_dict.

    ``forward(x)``: as the layers one after the other. ``residual`` is added to the result. ``recompute``:
    keep the convolutions' outputs for the backward and compute their normalised inputs again, else keep both.
    """

    impl = "auto"
    recompute = True

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if resolve_impl("Chain", self.impl, x) == "reference":
            for layer in self:
                x = layer(x)
            return x if residual is None else residual + x
        if x.dim() == 3:
            # One image without the dimension N, as torch's layers take it.
            return self(x[None], None if residual is None else residual[None])[0]
        if x.dim() != 4:
            raise ValueError(f"Chain: x must be [N, C, H, W] or [C, H, W], got shape {tuple(x.shape)}")
        return run_chains([self], x, residual)

    def __getitem__(self, index: Any) -> Any:
        found: Any = super().__getitem__(index)
        if isinstance(index, slice):
            found.impl, found.recompute = self.impl, self.recompute
        return found


def run_chains(
    chains: Sequence[Chain],
    x: Tensor,
    residual: Tensor | None = None,
    cancelled: list[Tensor] | None = None,
    start: int = 0,
    impl: Literal["triton", "reference"] = "triton",
) -> Tensor:
    """Run ``chains`` of P networks that are alike, from layer ``start`` on, on x [N, C, H, W]: N / P images
    for each, in their order.

    ``cancelled`` is for chains within chains: the list that gathers the biases which the outermost chain
    gives their zero gradient.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    deferred = _begin(chains[0], x, cancelled, impl)
    tanh = chains[0][-1] if isinstance(chains[0][-1], FloatTanh) else None
    for layers, following in _places(chains, start):
        if layers[0] is deferred.covered:
            continue
        if cancelled is None and (following is None or following[0] is tanh):
            # Before the last layer, so that the result is that layer's own and may be changed in place.
            deferred.give_zeros()
        _step(deferred, layers, following, chains[0].recompute)
    deferred.settle(residual)
    if cancelled is None:
        deferred.give_zeros()
    return deferred.x


def _begin(
    chain: Chain, x: Tensor, cancelled: list[Tensor] | None, impl: Literal["triton", "reference"]
) -> Deferred:
    """Return x with nothing to be done to it; see ``run_chains`` for ``cancelled``."""
    return Deferred(x, [] if cancelled is None else cancelled, impl, required=chain.impl == "triton")


def _places(chains: Sequence[Chain], start: int) -> Iterator[tuple[Layers, Layers | None]]:
    """Yield the layers at each place and those at the next."""
    places = list(zip(*(list(chain)[start:] for chain in chains), strict=True))
    yield from zip(places, [*places[1:], None], strict=True)


def _step(deferred: Deferred, layers: Layers, following: Layers | None, recompute: bool) -> None:
    layer, act = layers[0], activation(layers[0])
    border = 0 if following is None else border_of(layer, following[0])
    if border:
        deferred.border = border
    elif is_conv(layer):
        if isinstance(layer, reference.ResizeConv2d):
            deferred.x = F.interpolate(deferred.settle(), scale_factor=2, mode="nearest")
            deferred.border = 1
        deferred.convolve(layers, following, recompute)
    elif is_norm(layer):
        deferred.settle()
        deferred.norm = layer
    elif act is not None and deferred.norm is not None and deferred.act == "none":
        deferred.act, deferred.slope = act
    elif untouched(layer, ResidualBlock):
        deferred.x = _run_blocks(layers, deferred.settle(), deferred.cancelled, deferred.impl)
    elif untouched(layer, UnetBlock):
        _descend(deferred, layers, following)
    else:
        deferred.apply(layers)


def _descend(deferred: Deferred, blocks: Layers, following: Layers | None) -> None:
    """Run the next level of a U-Net. Its first LeakyReLU joins the norm before it, and its skip carries the
    activated value: the ReLU after every skip makes that the same function, with the same gradient."""
    act = _first_activation(blocks[0])
    before_relu = following is not None and untouched(following[0], nn.ReLU)
    if act is None or act[1] < 0 or not before_relu:
        deferred.x = run_levels(blocks, deferred.settle(), deferred.cancelled, False, deferred.impl)
        return
    if deferred.norm is not None and deferred.act == "none":
        deferred.act, deferred.slope = act
        x = deferred.settle()
    else:
        x = F.leaky_relu(deferred.settle(), act[1])
    deferred.x = run_levels(blocks, x, deferred.cancelled, True, deferred.impl)


def _first_activation(block: UnetBlock) -> tuple[str, float] | None:
    """Return the activation that a level of a U-Net begins with, None where it has none or is no chain."""
    chain: Any = block.model
    if block.outermost or not untouched(chain, Chain):
        return None
    return activation(chain[0])


class ResidualBlock(reference.ResidualBlock):
    """``reference.ResidualBlock`` as a chain: the sum is part of the last norm's pass."""

    sequential = Chain

    def forward(self, x: Tensor) -> Tensor:
        chain = self.conv_block
        if not untouched(chain, Chain):
            return x + chain(x)
        if resolve_impl("ResidualBlock", chain.impl, x) == "reference" or x.dim() != 4:  # type: ignore[arg-type]
            return chain(x, residual=x)
        return _run_blocks((self,), x, None)


def _run_blocks(
    blocks: Layers, x: Tensor, cancelled: list[Tensor] | None, impl: Literal["triton", "reference"] = "triton"
) -> Tensor:
    """Run residual blocks of P networks on x [N, C, H, W]; ``cancelled`` as for ``Chain``."""
    if not untouched(blocks[0].conv_block, Chain):
        return x + blocks[0].conv_block(x)
    convs = _plain_block(blocks, x)
    if convs is None:
        return run_chains([block.conv_block for block in blocks], x, x, cancelled, impl=impl)
    deferred = _begin(blocks[0].conv_block, x, cancelled, impl)
    weights: tuple[list[Tensor], list[Tensor]] = ([], [])
    for place, layers in enumerate(convs):
        for conv in layers:
            weights[place].append(conv.weight)
            if conv.bias is not None:
                deferred.cancelled.append(conv.bias)
    if cancelled is None:
        deferred.give_zeros()
    eps = blocks[0].conv_block[2].eps
    return residual_block(deferred.x, *weights, eps=eps, impl=deferred.public_impl)


def _plain_block(blocks: Layers, x: Tensor) -> tuple[Layers, Layers] | None:
    """Return the first and the second convolutions if the blocks are plain ones, a single operator on ``x``,
    else None.
    """
    chain: Any = blocks[0].conv_block
    if len(chain) != 7:
        return None
    pad1, conv1, norm1, relu, pad2, conv2, norm2 = chain
    if border_of(pad1, conv1) != 1 or border_of(pad2, conv2) != 1 or activation(relu) != ("relu", 0.0):
        return None
    if not _is_plain_norm(norm1) or not _is_plain_norm(norm2) or norm1.eps != norm2.eps:
        return None
    channels, dtype = x.shape[1], conv1.weight.dtype
    for conv in (conv1, conv2):
        if list(conv.weight.shape) != [channels, channels, 3, 3] or conv.weight.dtype != dtype:
            return None
        if (conv.stride, conv.dilation, conv.padding) != ((1, 1), (1, 1), (0, 0)):
            return None
    if compute_dtype(x, conv1.weight) != x.dtype:
        return None
    if backend_of("residual_block", x, x.dtype, len(blocks), channels, 3) != "triton":
        return None
    return tuple(block.conv_block[1] for block in blocks), tuple(block.conv_block[5] for block in blocks)


def _is_plain_norm(layer: nn.Module) -> bool:
    """Whether ``layer`` is an instance norm without weights."""
    return is_norm(layer) and layer.weight is None


class UnetBlock(reference.UnetBlock):
    """``reference.UnetBlock`` as a chain."""

    sequential = Chain
    tanh = FloatTanh

    def forward(self, x: Tensor) -> Tensor:
        chain: Any = self.model
        if untouched(chain, Chain) and x.dim() == 4 and resolve_impl("UnetBlock", chain.impl, x) == "triton":
            return run_levels((self,), x, None, False, "triton")
        y: Tensor = chain(x)
        return y if self.outermost else torch.cat([x, y], dim=1)


def run_levels(
    blocks: Layers,
    x: Tensor,
    cancelled: list[Tensor] | None,
    activated: bool,
    impl: Literal["triton", "reference"],
) -> Tensor:
    """Run a level of P U-Nets on x. ``activated``: x has gone through the level's first LeakyReLU already."""
    if not untouched(blocks[0].model, Chain):
        y: Tensor = blocks[0].model(x)
    else:
        start = 1 if activated else 0
        y = run_chains([block.model for block in blocks], x, None, cancelled, start, impl)
    return y if blocks[0].outermost else torch.cat([x, y], dim=1)
