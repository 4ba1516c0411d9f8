"""The work of a training step, layer by layer, and what it must take on a chip at least.

FLOPs are those of the convolutions' multiplications and additions. Bytes are the least that must move with
everything between two convolutions fused into one pass: each pass reads what it needs once and writes its
result once, statistics come with the write before. A layer's floor is the larger of its arithmetic and its
traffic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.testing import is_cancelled_bias

ITEM = {"bf16": 2, "fp32": 4}
ADAM_BYTES = 28  # a parameter's weight, gradient and two moments read, all but the gradient written, in fp32


@dataclass(frozen=True)
class Chip:
    """A chip's ceilings: matrix products in FLOP/s, memory in byte/s, seconds of one launch; ``source`` says
    who says so.
    """

    matrix: float
    bandwidth: float
    launch: float
    source: str


@dataclass(frozen=True)
class Work:
    """What one kind of layer does in one pass of a step: ``calls`` times ``flops`` and ``bytes``."""

    layer: str
    phase: str
    calls: int
    flops: float
    bytes: float
    shapes: tuple[tuple[int, ...], ...] = ()
    """Input (batch 1 first) and weight of a convolution: how a profile's events are known to be its."""

    def floor(self, chip: Chip) -> float:
        """Seconds that all its calls take at least."""
        return self.calls * max(self.flops / chip.matrix, self.bytes / chip.bandwidth)

    def bound(self, chip: Chip) -> str:
        if self.flops / chip.matrix >= self.bytes / chip.bandwidth:
            return "arithmetic"
        return "memory"


@dataclass(frozen=True)
class Layer:
    """A convolution as it is called: shapes of its input, weight and output, and whether a norm follows
    it."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    normed: bool
    residual: bool

    @property
    def flops(self) -> float:
        """Of one image batch, forward; each of the two backward passes has as many."""
        N, C, H, W = self.x
        O, OH, OW = self.y[1:]
        transposed = self.weight[0] == C and self.weight[1] == O and OH > H
        places = OH * OW
        if transposed:
            places = H * W
        return 2.0 * N * places * C * O * self.weight[2] * self.weight[3]


def layers_of(net: nn.Module, size: tuple[int, int], batch: int, channels: int = 3) -> list[Layer]:
    """Return the convolutions of ``net`` for images of ``size`` (height, width), as they run, from a dry
    run without memory.
    """
    found: list[Layer] = []
    names = {module: name for name, module in net.named_modules()}

    def heard(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        name, (x,) = names[module], inputs
        shapes = (tuple(x.shape), tuple(module.weight.shape), tuple(y.shape))  # type: ignore[arg-type]
        normed, residual = is_cancelled_bias(net, f"{name}.bias"), "conv_block" in name
        found.append(Layer(name, *shapes, normed, residual))

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(heard) for module in net.modules() if isinstance(module, kinds)]
    try:
        net.to("meta")(torch.empty(batch, channels, *size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _label(layer: Layer) -> str:
    O, side = layer.y[1], f"{layer.y[2]}x{layer.y[3]}"
    label = f"conv {layer.weight[2]}x{layer.weight[3]}, {layer.x[1]} to {O}, {side}"
    if layer.residual:
        return f"residual {label}"
    if layer.y[2] > layer.x[2] and layer.weight[2] == 3:
        return f"transposed {label}"
    return label


def passes(layer: Layer, item: int, forward: int, dgrad: int, wgrad: int, phase: str) -> Iterator[Work]:
    """Yield the work of a convolution and of the norm after it, for so many calls of each pass."""
    x, w, y = (_numel(shape) * item for shape in (layer.x, layer.weight, layer.y))
    label, shapes = _label(layer), (layer.x, layer.weight)
    convolution = (("forward", forward, x + w + y), ("dgrad", dgrad, y + w + x), ("wgrad", wgrad, x + y + w))
    for name, calls, moved in convolution:
        if calls:
            yield Work(label, f"{phase}, {name}", calls, layer.flops, moved, shapes)
    if layer.normed:
        # Forward: read the convolution's output (and the skip), write the next input. Backward: two
        # reductions, then the gradient, and the next input again for the weight gradient.
        skip = 0
        if layer.residual and layer.name.endswith((".5", ".6")):
            skip = y
        if forward:
            yield Work(f"norm after {label}", f"{phase}, forward", forward, 0.0, 2 * y + skip)
        if dgrad or wgrad:
            yield Work(f"norm after {label}", f"{phase}, backward", max(dgrad, wgrad), 0.0, 5 * y)


def step_work(
    size: int, batch: int, blocks: int = 9, identity: bool = True, precision: str = "bf16"
) -> list[Work]:
    """Return the work of one training iteration with default widths, equal kinds together."""
    G, D = reference.Generator(n_blocks=blocks), reference.Discriminator()
    parameters = 2 * sum(p.numel() for p in (*G.parameters(), *D.parameters()))
    item = ITEM[precision]
    found: list[Work] = []
    # Of each generator: a pass over real images, one over the other's fakes, and one for identity.
    all_passes = 2
    if identity:
        all_passes = 3
    # The first layer's input needs a gradient only where it is a fake, in one pass of them.
    dgrad = 1
    for layer in layers_of(G, (size, size), batch):
        found += passes(layer, item, 2 * all_passes, 2 * dgrad, 2 * all_passes, "G")
        dgrad = all_passes
    # Through D for G's loss (its weights frozen), then over real and pooled images, of which nothing needs
    # the gradient.
    dgrad = 0
    for layer in layers_of(D, (size, size), batch):
        found += passes(layer, item, 2, 2, 0, "G through D")
        found += passes(layer, item, 4, dgrad, 4, "D")
        dgrad = 4
    found.append(Work("Adam", "update", 1, 0.0, float(parameters * ADAM_BYTES)))
    return merged(found)


def merged(works: list[Work]) -> list[Work]:
    """Return ``works`` with equal layers and passes added up."""
    kinds: dict[Work, int] = {}
    for work in works:
        kind = replace(work, calls=1)
        kinds[kind] = kinds.get(kind, 0) + work.calls
    return [replace(kind, calls=calls) for kind, calls in kinds.items()]


def total(works: list[Work], chip: Chip, launches: int) -> float:
    """Return the floor of a step in seconds."""
    return sum(work.floor(chip) for work in works) + launches * chip.launch
