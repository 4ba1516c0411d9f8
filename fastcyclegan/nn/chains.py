"""Run chains of layers in fewer passes than there are layers. Our networks are built from these chains.

A ``Chain`` keeps one child per layer of the official networks, so its names, keys and repr match theirs. It
fuses a norm, its activation, a reflection padding and the convolution after them into one operator. It does
not add the bias of a convolution if the next norm cancels it; such a bias receives its true gradient, which
is zero. On a device that the kernels do not support, the layers run one by one. A layer with hooks, or of a
class other than the official one, is called as an ordinary module.

The functions here run the chains of P networks at once, with P = 1 for a single network. ``deferred.py``
defines the tensor that passes through the chains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.kernels.backend_table import backend_of
from fastcyclegan.kernels.dispatch import Impl, resolve_impl
from fastcyclegan.kernels.residual_block import residual_block
from fastcyclegan.nn.deferred import Deferred, Layers
from fastcyclegan.nn.layer_checks import activation, border_of, compute_dtype, is_conv, is_norm, untouched
from fastcyclegan.nn.layers import FloatTanh, check_scriptable
from fastcyclegan.nn.skips import relu_of_both


class Chain(nn.Sequential):
    """An ``nn.Sequential`` of official layers, with the same state_dict, that runs in fewer passes.

    ``forward(x)`` computes the same function as the layers one after another, and adds ``residual`` to the
    result. If ``recompute`` is true, only the convolutions' outputs are kept for the backward, which computes
    their normalised inputs again. If it is false, both are kept.
    """

    impl = "auto"
    recompute = True

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        # The condition is fixed when the network is scripted, so that only the first branch is compiled.
        if torch.jit.is_scripting():
            for layer in self:
                x = layer(x)
            return x if residual is None else residual + x
        else:
            return self._run(x, residual)

    def _run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        impl = resolve_impl("Chain", self.impl, x)
        if impl == "reference":
            for layer in self:
                x = layer(x)
            return x if residual is None else residual + x
        if x.dim() == 3:
            # A single image without the dimension N, which torch's layers accept too.
            return self(x[None], None if residual is None else residual[None])[0]
        if x.dim() != 4:
            raise ValueError(f"Chain: x must be [N, C, H, W] or [C, H, W], got shape {tuple(x.shape)}")
        return _in_layout_for(run_chains([self], x, residual, impl=impl), x, self, impl)

    def __prepare_scriptable__(self) -> Chain:
        check_scriptable(self.impl)
        return self

    def __getitem__(self, index: Any) -> Any:
        item: Any = super().__getitem__(index)
        if isinstance(index, slice):
            item.impl, item.recompute = self.impl, self.recompute
        return item


def _in_layout_for(y: Tensor, x: Tensor, module: nn.Module, impl: Impl) -> Tensor:
    """Return ``y``, the result of ``module`` for x, in the layout that PyTorch's operators would give it.

    On a CPU, code that was written for them may view it. Their result is in channels_last only if x or the
    weights are.
    """
    if impl != "cpp" or not x.is_contiguous():
        return y
    weight = next((p for p in module.parameters() if p.dim() == 4), None)
    if weight is not None and not weight.is_contiguous():
        return y
    return y.contiguous()


def run_chains(
    chains: Sequence[Chain],
    x: Tensor,
    residual: Tensor | None = None,
    cancelled: list[Tensor] | None = None,
    start: int = 0,
    impl: Impl = "triton",
) -> Tensor:
    """Run the chains of P matching networks on x [N, C, H, W], from layer ``start`` on.

    x holds N / P images per network, in the order of the networks. ``cancelled`` is for nested chains: a list
    that collects the biases to which the outermost chain gives a zero gradient.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    deferred = _without_pending(chains[0], x, cancelled, impl)
    positions = list(_positions(chains, start))
    last = _last_weights(positions) if cancelled is None else None
    for index, (layers, following) in enumerate(positions):
        if layers[0] is deferred.covered:
            continue
        if index != last:
            _step(deferred, layers, following, chains[0].recompute, deferred.cancelled)
            continue
        # The result of attaching must not be changed in place. Here, only operators of ours read it: the last
        # layer with weights and, for its own biases, the norm after it.
        deferred.attach_zero_gradients()
        _step(deferred, layers, following, chains[0].recompute, None)
        deferred.attach_zero_gradients()
    return deferred.flush(residual)


def _last_weights(positions: Sequence[tuple[Layers, Layers | None]]) -> int | None:
    """Return the index of the last position whose convolutions are computed here, or None."""
    for index, (layers, _) in reversed(list(enumerate(positions))):
        if is_conv(layers[0]) or _is_block(layers[0], ResidualBlock, UnetBlock):
            return index
    return None


def _is_block(layer: Any, *kinds: type[ResidualBlock] | type[UnetBlock]) -> bool:
    """Return whether ``layer`` is one of ``kinds``, with the forward of its class and no hooks.

    It may be of a derived class, which may build other layers and, for ``UnetBlock``, change the skip.
    """
    same = [kind for kind in kinds if isinstance(layer, kind) and type(layer).forward is kind.forward]
    return bool(same) and untouched(layer, type(layer))


def _without_pending(chain: Chain, x: Tensor, cancelled: list[Tensor] | None, impl: Impl) -> Deferred:
    """Wrap x in a ``Deferred`` with no pending operations. See ``run_chains`` for ``cancelled``."""
    return Deferred(x, [] if cancelled is None else cancelled, impl, required=chain.impl == impl)


def _positions(chains: Sequence[Chain], start: int) -> Iterator[tuple[Layers, Layers | None]]:
    """Yield the layers at each position together with those at the next."""
    positions = list(zip(*(list(chain)[start:] for chain in chains), strict=True))
    yield from zip(positions, [*positions[1:], None], strict=True)


def _step(
    deferred: Deferred,
    layers: Layers,
    following: Layers | None,
    recompute: bool,
    cancelled: list[Tensor] | None,
) -> None:
    """Compute ``layers``, or defer them. See ``run_chains`` for ``cancelled``, which is for nested chains."""
    layer, act = layers[0], activation(layers[0])
    border = 0 if following is None else border_of(layer, following[0])
    if border:
        deferred.border = border
    elif is_conv(layer):
        if isinstance(layer, reference.ResizeConv2d):
            deferred.x = F.interpolate(deferred.flush(), scale_factor=2.0, mode="nearest")
            deferred.border = 1
        deferred.convolve(layers, following, recompute)
    elif is_norm(layer):
        deferred.flush()
        deferred.norm = layer
    elif act is not None and deferred.can_activate(act):
        deferred.activate(act)
    elif _is_block(layer, ResidualBlock):
        deferred.x = _run_blocks(layers, deferred.flush(), cancelled, deferred.impl)
    elif _is_block(layer, UnetBlock):
        _descend(deferred, layers, following, cancelled)
    else:
        deferred.call_layers(layers)


def _descend(
    deferred: Deferred, blocks: Layers, following: Layers | None, cancelled: list[Tensor] | None
) -> None:
    """Run the next level of a U-Net.

    The level's first LeakyReLU is fused with the norm before it, so the skip carries the activated value.
    Because a ReLU follows every skip, this is the same function, with the same gradient.
    """
    act = _first_activation(blocks[0])
    before_relu = following is not None and untouched(following[0], nn.ReLU)
    activated = act is not None and act[1] >= 0 and before_relu
    if activated and act is not None:
        deferred.activate(act)
    skip, y = _run_level(blocks, deferred.flush(), cancelled, activated, deferred.impl)
    if skip is None:
        deferred.x = y
    elif before_relu and following is not None:
        deferred.x, deferred.covered = relu_of_both(skip, y), following[0]
    else:
        deferred.x = torch.cat([skip, y], dim=-3)


def _first_activation(block: UnetBlock) -> tuple[str, float] | None:
    """Return the activation that a U-Net level starts with, or None if there is none or it is not a chain."""
    chain: Any = block.model
    if block.outermost or not untouched(chain, Chain):
        return None
    return activation(chain[0])


class ResidualBlock(reference.ResidualBlock):
    """``reference.ResidualBlock`` as a chain: the residual is added in the last norm's pass."""

    sequential = Chain

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return x + self.conv_block(x)
        else:
            return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        chain = self.conv_block
        if not untouched(chain, Chain):
            return x + chain(x)
        impl = resolve_impl("ResidualBlock", chain.impl, x)  # type: ignore[arg-type]
        if impl == "reference" or x.dim() != 4:
            return chain(x, residual=x)
        return _in_layout_for(_run_blocks((self,), x, None, impl), x, self, impl)


def _run_blocks(blocks: Layers, x: Tensor, cancelled: list[Tensor] | None, impl: Impl) -> Tensor:
    """Run the residual blocks of P networks on x [N, C, H, W]; see ``run_chains`` for ``cancelled``."""
    if not untouched(blocks[0].conv_block, Chain):
        return x + blocks[0].conv_block(x)
    # On a CPU, the operators are those of the layers, so nothing is gained by treating the block as one.
    convs = None if impl == "cpp" else _plain_block(blocks, x)
    if convs is None:
        return run_chains([block.conv_block for block in blocks], x, x, cancelled, impl=impl)
    deferred = _without_pending(blocks[0].conv_block, x, cancelled, impl)
    weights: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index, layers in enumerate(convs):
        for conv in layers:
            weights[index].append(conv.weight)
            if conv.bias is not None:
                deferred.cancelled.append(conv.bias)
    if cancelled is None:
        deferred.attach_zero_gradients()
    eps = blocks[0].conv_block[2].eps
    return residual_block(deferred.x, *weights, eps=eps, impl=deferred.public_impl)


def _plain_block(blocks: Layers, x: Tensor) -> tuple[Layers, Layers] | None:
    """Return the first and the second convolutions of ``blocks`` if one operator can compute the blocks.

    Otherwise, return None.
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
    """Return whether ``layer`` is an instance norm without weights."""
    return is_norm(layer) and layer.weight is None


class UnetBlock(reference.UnetBlock):
    """``reference.UnetBlock`` as a chain."""

    sequential = Chain
    tanh = FloatTanh

    def skip(self, x: Tensor) -> Tensor:
        """Return what the skip carries for the input x. Before a ReLU, LeakyReLU(x) makes no difference."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            y = self.model(x)
            return y if self.outermost else torch.cat([self.skip(x), y], dim=-3)
        else:
            return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        chain: Any = self.model
        if untouched(chain, Chain) and x.dim() == 4:
            impl = resolve_impl("UnetBlock", chain.impl, x)
            if impl != "reference":
                return _in_layout_for(run_levels((self,), x, None, False, impl), x, self, impl)
        y: Tensor = chain(x)
        return y if self.outermost else torch.cat([self.skip(x), y], dim=-3)


def run_levels(
    blocks: Layers,
    x: Tensor,
    cancelled: list[Tensor] | None,
    activated: bool,
    impl: Impl,
) -> Tensor:
    """Run one level of P U-Nets on x [N, C, H, W].

    If ``activated`` is true, the level's first LeakyReLU has already been applied to x. See ``run_chains``
    for ``cancelled``.
    """
    skip, y = _run_level(blocks, x, cancelled, activated, impl)
    return y if skip is None else torch.cat([skip, y], dim=-3)


def _run_level(
    blocks: Layers, x: Tensor, cancelled: list[Tensor] | None, activated: bool, impl: Impl
) -> tuple[Tensor | None, Tensor]:
    """Return what the skip of ``run_levels`` carries, or None at the outermost level, and what joins it."""
    block = blocks[0]
    if not untouched(block.model, Chain):
        y: Tensor = block.model(x)
    else:
        start = 1 if activated else 0
        y = run_chains([block.model for block in blocks], x, None, cancelled, start, impl)
    if block.outermost:
        return None, y
    return x if activated else block.skip(x), y
