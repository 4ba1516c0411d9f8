"""Benchmark zero-padded convolutions of two networks at once.

They are strided, transposed or 4x4. PyTorch's library, called once per network, is compared with
fastcyclegan's kernels.

On a GPU they run in bf16 at the shapes of generators and discriminators for 256x256 images, for forward and
backward together and for the forward only. "library" makes two calls and copies their inputs and outputs,
like a pair of networks that do not run together. The results of the timed rounds are compared with float64.
The rows for one network show for which shapes cuDNN is the faster backend; scripts/gpu_suite.py builds the
table of backends from them. On a CPU, where the kernels do not run, only the library is timed, with one
reduced shape.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.bench_reflect_conv import DTYPE
from bench.machine import DEVICE
from bench.operators import ROUNDS, Case, Operator, channels_last, products
from bench.timing import Builders, Entrant, Race, Unavailable, builders_of, clock, rotations
from fastcyclegan.kernels.backend_table import backend_key
from fastcyclegan.kernels.zero_conv import zero_conv


class Layer(NamedTuple):
    """The size of one convolution. Transposed convolutions have output_padding 1.

    ``C`` and ``O`` are the numbers of input and output channels, ``side`` is the height and width of the
    input, and ``k`` is the kernel size.
    """

    C: int
    O: int
    side: int
    k: int
    stride: int
    transposed: bool = False

    @property
    def out_side(self) -> int:
        if self.transposed:
            return 2 * self.side
        return (self.side + 2 - self.k) // self.stride + 1

    @property
    def flops(self) -> int:
        """FLOPs of the forward pass for one image.

        Each position of the coarser grid costs one multiplication and one addition for every tap, input
        channel and output channel.
        """
        return 2 * min(self.side, self.out_side) ** 2 * self.C * self.O * self.k**2


# The generators' and the discriminators' layers at 256x256; the costliest first.
LAYERS = {
    "cuda": [
        Layer(128, 256, 128, 3, 2),
        Layer(256, 128, 64, 3, 2, transposed=True),
        Layer(64, 128, 256, 3, 2),
        Layer(128, 64, 128, 3, 2, transposed=True),
        Layer(256, 512, 32, 4, 1),
        Layer(128, 256, 64, 4, 2),
        Layer(64, 128, 128, 4, 2),
        Layer(3, 64, 256, 4, 2),
        Layer(512, 1, 31, 4, 1),
    ],
    "cpu": [Layer(32, 64, 32, 3, 2)],
}
DIRECTIONS = {"cuda": ["all", "forward"], "cpu": ["all"]}
NETWORKS = {"cuda": [2, 1], "cpu": [2]}
# The providers whose times go into the table of backends, with their backends.
BACKENDS = {"ours": "triton", "library": "cudnn"}
PROVIDERS = ["matmul", "library", "ours"]

pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False), pytest.mark.cost(cpu=5, cuda=20)]


def functions(layer: Layer) -> dict[str, Operator]:
    """Return the function of each provider that applies ``layer`` to images, with one weight per network."""

    def library(x: Tensor, *weights: Tensor) -> Tensor:
        parts = zip(x.chunk(len(weights)), weights, strict=True)
        if layer.transposed:
            results = [F.conv_transpose2d(part, w, None, 2, 1, 1) for part, w in parts]
        else:
            results = [F.conv2d(part, w, None, layer.stride, 1) for part, w in parts]
        if len(results) == 1:
            return results[0]
        return torch.cat(results)

    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        up = layer.transposed
        return zero_conv(
            x, list(weights), [], stride=layer.stride, padding=1, transposed=up, output_padding=int(up)
        )

    return {"library": library, "ours": ours}


def inputs(layer: Layer, images: int, networks: int) -> list[tuple[Tensor, ...]]:
    """Return tuples of images, one weight per network, and the output's gradient, to use in turn.

    There are enough of them that none is still in the L2 cache when it is used again.
    """
    dtype, k, side, out_side = DTYPE[DEVICE], layer.k, layer.side, layer.out_side
    shape = (layer.O, layer.C, k, k)
    if layer.transposed:
        shape = (layer.C, layer.O, k, k)
    deviation = (layer.C * k * k) ** 0.5
    torch.manual_seed(0)

    def one() -> tuple[Tensor, ...]:
        weights = [channels_last(*shape, dtype=dtype) / deviation for _ in range(networks)]
        x = channels_last(images, layer.C, side, side, dtype=dtype)
        dy = channels_last(images, layer.O, out_side, out_side, dtype=dtype)
        return x, *weights, dy

    size = images * (layer.C * side**2 + layer.O * out_side**2) * dtype.itemsize
    return [one() for _ in range(rotations(size, DEVICE))]


def make_builders(layer: Layer, images: int, networks: int, direction: str, fault: bool) -> Builders:
    """Return a builder for each provider of this convolution."""
    run, dtype = functions(layer), DTYPE[DEVICE]
    case = Case(run["library"], inputs(layer, images, networks), direction)
    flops = images * layer.flops * len(case.inputs)
    if direction == "all":
        flops *= 3

    def entrant(provider: str) -> Entrant:
        if provider == "matmul":
            return products(dtype)
        if provider == "ours" and DEVICE != "cuda":
            raise Unavailable("the kernels run on an NVIDIA GPU")
        info: dict[str, Any] = {"flops": flops}
        if direction == "all":
            places, C, O, k = layer.side**2, layer.C, layer.O, layer.k
            info["backend_key"] = backend_key("zero_conv", dtype, images, networks, places, C, O, k)
            info["backend"] = BACKENDS[provider]
        return case.entrant(provider, run[provider], fault and provider == "ours", **info)

    return builders_of(PROVIDERS, entrant)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", DIRECTIONS[DEVICE])
@pytest.mark.parametrize("networks", NETWORKS[DEVICE])
@pytest.mark.parametrize("layer", LAYERS[DEVICE], ids=lambda layer: "-".join(map(str, layer)))
def bench_zero_conv(
    race: Race, fault: bool, layer: Layer, networks: int, direction: str, provider: str
) -> None:
    images = 2 * networks
    kind = f"stride {layer.stride}"
    if layer.transposed:
        kind = "transposed"
    layer_name = f"{layer.k}x{layer.k} {kind}, {layer.C} to {layer.O}"
    size, dtype = f"{images} of {layer.side}x{layer.side}", str(DTYPE[DEVICE]).removeprefix("torch.")
    group = f"zero_conv {layer_name}, {networks} networks, {size}, {direction}, {dtype}, {DEVICE}"
    race(group, make_builders(layer, images, networks, direction, fault), ROUNDS[DEVICE], seconds=5)
