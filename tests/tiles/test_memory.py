"""Tests of the memory that a plan needs: the estimate holds, and large images stay within its limits."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.tiles.calls import Calls
from fastcyclegan.tiles.divide import Plan
from fastcyclegan.tiles.execute import Ends, Execution
from fastcyclegan.tiles.memory import need_of
from fastcyclegan.tiles.plan import plan
from fastcyclegan.tiles.storage import TensorRows

GIB = 2**30
HOST = torch.device("cpu")


class _Peak(TorchDispatchMode):
    """Adds up the memory of all results that are alive, and keeps the peak."""

    def __init__(self, *others: Tensor) -> None:
        super().__init__()
        self.others = {tensor.untyped_storage()._cdata for tensor in others}
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._track(tensor)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes and key not in self.others:
            self.sizes[key] = storage.nbytes()
            weakref.finalize(storage, self.sizes.pop, key, None)


def _peak_of(net: nn.Module, planned: Plan, image: Tensor) -> int:
    """Return the bytes that one computation allocates at its peak, apart from the image and the result."""
    result = torch.empty(1, 3, *image.shape[2:])

    def write(window: Any, y: Tensor) -> None:
        result[:, :, slice(*window[0]), slice(*window[1])] = y

    with torch.no_grad(), _Peak(image, result) as found:
        execution = Execution(
            planned, Calls("reference"), HOST, lambda shape, dtype: TensorRows(shape, dtype, HOST)
        )
        execution.run(Ends(lambda window: image[:, :, slice(*window[0]), slice(*window[1])], write))
    return found.peak


@pytest.mark.parametrize(
    ("net", "size", "tile"),
    [
        (Generator(ngf=16, n_blocks=2, impl="reference"), (256, 192), 64),
        (Generator(ngf=16, n_blocks=1, norm="batch", impl="reference"), (192, 192), 96),
        (Generator(ngf=8, n_blocks=1, upsample="resize", impl="reference"), (128, 128), 128),  # one tile
        (UnetGenerator(ngf=8, num_downs=5, impl="reference"), (256, 256), 64),
    ],
    ids=["resnet", "batch", "resize", "unet"],
)
def test_the_estimate_holds(net: nn.Module, size: tuple[int, int], tile: int) -> None:
    image = torch.rand(1, 3, *size)
    planned = plan(net.eval(), 3, size, tile)
    need = need_of(planned)
    peak = _peak_of(net, planned, image)
    estimate = 4 * (need.stored + need.temporary)
    # Tiles are not all of the largest size, and not every convolution copies its input.
    assert 0.3 * estimate < peak <= 1.05 * estimate


@pytest.fixture(scope="module")
def generator() -> nn.Module:
    with torch.device("meta"):
        return Generator().eval()


def test_8192_pixels_fit_into_12_gib_of_the_host(generator: nn.Module) -> None:
    need = need_of(plan(generator, 3, (8192, 8192), 512))
    # The image and its translation are bytes. Python with torch takes less than 1 GiB.
    bytes_needed = 4 * (need.stored + 1.25 * need.temporary) + 2 * 3 * 8192**2 + GIB
    assert bytes_needed < 12 * GIB


@pytest.mark.parametrize(
    ("itemsize", "on_device"), [(4, False), (2, False), (2, True)], ids=["fp32", "bf16", "bf16 on the GPU"]
)
def test_8192_pixels_fit_into_6_gib_of_a_gpu(generator: nn.Module, itemsize: int, on_device: bool) -> None:
    need = need_of(plan(generator, 3, (8192, 8192), 1024))
    weights = sum(4 * p.numel() for p in generator.parameters())
    stored = need.stored if on_device else 0
    assert itemsize * (stored + 1.25 * need.temporary) + 2 * weights < 6 * GIB


def test_two_maps_are_stored_at_once(generator: nn.Module) -> None:
    need = need_of(plan(generator, 3, (8192, 8192), 512))
    one = 256 * 2048 * 2048
    assert 2 * one <= need.stored < 2.25 * one


def test_temporary_memory_depends_on_the_tile_alone(generator: nn.Module) -> None:
    small, large = (need_of(plan(generator, 3, (side, side), 256)) for side in (1024, 4096))
    assert large.temporary == small.temporary
