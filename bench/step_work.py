"""Calculate the work of a training step, layer by layer, and a lower bound on its time on a chip.

FLOPs count the multiplications and additions of the convolutions. Bytes are the minimum traffic if everything
between two convolutions is fused into one pass: each pass reads its inputs once and writes its result once,
and statistics are computed during the preceding write. The floor of a layer is the larger of the times for
its arithmetic and for its traffic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.testing import is_cancelled_bias

ITEM = {"bf16": 2, "fp32": 4}
ADAM_BYTES = 28  # per parameter in fp32: weight, gradient, two moments read; all but the gradient written


@dataclass(frozen=True)
class Chip:
    """A chip's ceilings: matrix products in FLOP/s, memory bandwidth in byte/s, and seconds per launch.

    ``source`` describes where the figures come from.
    """

    matrix: float
    bandwidth: float
    launch: float
    source: str


@dataclass(frozen=True)
class Work:
    """The work of one kind of layer in one pass of a training step.

    ``flops`` and ``bytes`` are those of each of the ``calls``.
    """

    layer: str
    phase: str
    calls: int
    flops: float
    bytes: float
    shapes: tuple[tuple[int, ...], ...] = ()
    """The shapes of a convolution's input and weight, by which it is recognised in a profile."""

    def floor(self, chip: Chip) -> float:
        """Return a lower bound, in seconds, on the total time of all its calls."""
        return self.calls * max(self.flops / chip.matrix, self.bytes / chip.bandwidth)

    def bound(self, chip: Chip) -> str:
        if self.flops / chip.matrix >= self.bytes / chip.bandwidth:
            return "arithmetic"
        return "memory"


@dataclass(frozen=True)
class Layer:
    """A convolution as it is called.

    ``x``, ``weight`` and ``y`` are the shapes of its input, weight and output. ``normed`` is true if a norm
    follows it, and ``residual`` if it is in a residual block.
    """

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    normed: bool
    residual: bool

    @property
    def flops(self) -> float:
        """FLOPs of one batch in the forward pass. Each of the two backward passes has the same number."""
        N, C, H, W = self.x
        O, OH, OW = self.y[1:]
        transposed = self.weight[0] == C and self.weight[1] == O and OH > H
        places = OH * OW
        if transposed:
            places = H * W
        return 2.0 * N * places * C * O * self.weight[2] * self.weight[3]


def layers_of(net: nn.Module, size: tuple[int, int], batch: int, channels: int = 3) -> list[Layer]:
    """Return the convolutions of ``net`` for images of ``size`` (height, width), in execution order.

    They come from a run on the meta device, which needs no memory.
    """
    layers: list[Layer] = []
    names = {module: name for name, module in net.named_modules()}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        name, (x,) = names[module], inputs
        shapes = (tuple(x.shape), tuple(module.weight.shape), tuple(y.shape))  # type: ignore[arg-type]
        normed, residual = is_cancelled_bias(net, f"{name}.bias"), "conv_block" in name
        layers.append(Layer(name, *shapes, normed, residual))

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks = [module.register_forward_hook(record) for module in net.modules() if isinstance(module, kinds)]
    try:
        net.to("meta")(torch.empty(batch, channels, *size, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return layers


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def label_of(layer: Layer) -> str:
    """Return a short description of a convolution, with the size of its output."""
    O, side = layer.y[1], f"{layer.y[2]}x{layer.y[3]}"
    label = f"conv {layer.weight[2]}x{layer.weight[3]}, {layer.x[1]} to {O}, {side}"
    if layer.residual:
        return f"residual {label}"
    if layer.y[2] > layer.x[2] and layer.weight[2] == 3:
        return f"transposed {label}"
    return label


def passes(layer: Layer, item: int, forward: int, dgrad: int, wgrad: int, phase: str) -> Iterator[Work]:
    """Yield the work of a convolution and of the norm after it.

    ``forward``, ``dgrad`` and ``wgrad`` are the numbers of calls of each pass.
    """
    x, w, y = (_numel(shape) * item for shape in (layer.x, layer.weight, layer.y))
    label, shapes = label_of(layer), (layer.x, layer.weight)
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
    """Return the work of one training iteration with networks of the default width.

    Equal kinds of work are merged.
    """
    G, D = reference.Generator(n_blocks=blocks), reference.Discriminator()
    parameters = 2 * sum(p.numel() for p in (*G.parameters(), *D.parameters()))
    item = ITEM[precision]
    work: list[Work] = []
    # Each generator has a pass over real images, one over the fakes of the other, and one for the identity
    # loss.
    all_passes = 2
    if identity:
        all_passes = 3
    # The input of the first layer needs a gradient only in the pass over fakes.
    dgrad = 1
    for layer in layers_of(G, (size, size), batch):
        work += passes(layer, item, 2 * all_passes, 2 * dgrad, 2 * all_passes, "G")
        dgrad = all_passes
    # Each discriminator runs for G's loss with frozen weights, then over real and pooled images, which need
    # no gradient.
    dgrad = 0
    for layer in layers_of(D, (size, size), batch):
        work += passes(layer, item, 2, 2, 0, "G through D")
        work += passes(layer, item, 4, dgrad, 4, "D")
        dgrad = 4
    work.append(Work("Adam", "update", 1, 0.0, float(parameters * ADAM_BYTES)))
    return merge(work)


def merge(works: list[Work]) -> list[Work]:
    """Return ``works`` with the calls of equal layers and passes added up."""
    kinds: dict[Work, int] = {}
    for work in works:
        kind = replace(work, calls=1)
        kinds[kind] = kinds.get(kind, 0) + work.calls
    return [replace(kind, calls=calls) for kind, calls in kinds.items()]


def total(works: list[Work], chip: Chip, launches: int) -> float:
    """Return the floor of a step in seconds, including its launches."""
    return sum(work.floor(chip) for work in works) + launches * chip.launch
