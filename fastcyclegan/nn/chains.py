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
from fastcyclegan.nn.deferred import Flow, Layers
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
            # One picture without the dimension N, as torch's layers take it.
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
    """Run ``chains`` of P networks that are alike, from layer ``start`` on, on x [N, C, H, W]: N / P pictures
    for each, in their order.

    ``cancelled`` is for chains within chains: the list that gathers the biases which the outermost chain
    gives their zero gradient.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    flow = Flow(x, [] if cancelled is None else cancelled, impl, required=chains[0].impl == "triton")
    last = chains[0][-1]
    for layers, following in _places(chains, start):
        if layers[0] is flow.done:
            continue
        if cancelled is None and (
            following is None or (following[0] is last and isinstance(last, FloatTanh))
        ):
            # Before the last layer, so that the result is that layer's own and may be changed in place.
            flow.give_zeros()
        _step(flow, layers, following, chains[0].recompute)
    flow.settle(residual)
    if cancelled is None:
        flow.give_zeros()
    return flow.x


def _places(chains: Sequence[Chain], start: int) -> Iterator[tuple[Layers, Layers | None]]:
    """Yield the layers at each place and those at the next."""
    places = list(zip(*(list(chain)[start:] for chain in chains), strict=True))
    yield from zip(places, [*places[1:], None], strict=True)


def _step(flow: Flow, layers: Layers, following: Layers | None, recompute: bool) -> None:
    layer = layers[0]
    act, after = activation(layer), None if following is None else following[0]
    if border_of(layer, after):
        flow.border = border_of(layer, after)
    elif is_conv(layer):
        if isinstance(layer, reference.ResizeConv2d):
            flow.x, flow.border = F.interpolate(flow.settle(), scale_factor=2, mode="nearest"), 1
        flow.convolve(layers, following, recompute)
    elif is_norm(layer):
        flow.settle()
        flow.norm = layer
    elif act is not None and flow.norm is not None and flow.act == "none":
        flow.act, flow.slope = act
    elif untouched(layer, ResidualBlock):
        flow.x = _run_blocks(layers, flow.settle(), flow.cancelled, flow.impl)
    elif untouched(layer, UnetBlock):
        _descend(flow, layers, following)
    else:
        flow.apply(layers)


def _descend(flow: Flow, blocks: Layers, following: Layers | None) -> None:
    """Run the next level of a U-Net. Its first LeakyReLU joins the norm before it, and its skip carries the
    activated value: the ReLU after every skip makes that the same function, with the same gradient."""
    block = blocks[0]
    act = None if block.outermost or not untouched(block.model, Chain) else activation(block.model[0])
    if act is None or act[1] < 0 or following is None or not untouched(following[0], nn.ReLU):
        flow.x = run_levels(blocks, flow.settle(), flow.cancelled, False, flow.impl)
        return
    if flow.norm is not None and flow.act == "none":
        flow.act, flow.slope = act
        x = flow.settle()
    else:
        x = F.leaky_relu(flow.settle(), act[1])
    flow.x = run_levels(blocks, x, flow.cancelled, True, flow.impl)


class ResidualBlock(reference.ResidualBlock):
    """``reference.ResidualBlock`` as a chain: the sum is part of the last norm's pass."""

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
    flow = Flow(
        x, [] if cancelled is None else cancelled, impl, required=blocks[0].conv_block.impl == "triton"
    )
    flow.cancelled += [conv.bias for pair in convs for conv in pair if conv.bias is not None]
    if cancelled is None:
        flow.give_zeros()
    first, second = ([conv.weight for conv in pair] for pair in convs)
    return residual_block(flow.x, first, second, eps=blocks[0].conv_block[2].eps, impl=flow.asked)


def _plain_block(blocks: Layers, x: Tensor) -> tuple[Layers, Layers] | None:
    """Return the first and the second convolutions if the blocks are plain ones, a single operator on ``x``,
    else None.
    """
    chain: Any = blocks[0].conv_block
    if len(chain) != 7:
        return None
    pad1, conv1, norm1, relu, pad2, conv2, norm2 = chain
    weight, shape = conv1.weight, [x.shape[1], x.shape[1], 3, 3]
    plain = (
        (border_of(pad1, conv1), border_of(pad2, conv2)) == (1, 1)
        and all(is_norm(norm) and norm.weight is None and norm.eps == norm1.eps for norm in (norm1, norm2))
        and activation(relu) == ("relu", 0.0)
        and all(
            list(conv.weight.shape) == shape and conv.weight.dtype == weight.dtype for conv in (conv1, conv2)
        )
        and all(conv.stride == conv.dilation == (1, 1) and conv.padding == (0, 0) for conv in (conv1, conv2))
        and compute_dtype(x, weight) == x.dtype
        and backend_of("residual_block", x, x.dtype, len(blocks), shape[0], 3) == "triton"
    )
    return (tuple(b.conv_block[1] for b in blocks), tuple(b.conv_block[5] for b in blocks)) if plain else None


class UnetBlock(reference.UnetBlock):
    """``reference.UnetBlock`` as a chain."""

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
        y = run_chains([block.model for block in blocks], x, None, cancelled, 1 if activated else 0, impl)
    return y if blocks[0].outermost else torch.cat([x, y], dim=1)


_CHAINED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: Chain,
    reference.ResidualBlock: ResidualBlock,
    reference.UnetBlock: UnetBlock,
}


def chained(net: nn.Module, impl: str, recompute: bool) -> None:
    """Make the official layers inside ``net`` run as chains, in place: the modules keep their children, names
    and parameters.
    """
    for module in net.modules():
        if type(module) in _CHAINED:
            # The structure is the reference's and is built there; only the way that it runs is another.
            module.__class__ = _CHAINED[type(module)]
        if isinstance(module, Chain):
            module.impl, module.recompute = impl, recompute
