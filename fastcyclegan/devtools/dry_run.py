"""Count the Triton launches, ATen calls and bytes saved for the backward pass, exactly and without a GPU.

In a dry run, kernel launches are recorded but not made, convolutions return uninitialised tensors of the
right shape and layout, and everything else runs on the CPU. So a dry run at real sizes takes only a second,
but its results have no meaning.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from fastcyclegan.kernels import _launch
from fastcyclegan.kernels._operator import BODIES
from fastcyclegan.nn.networks import Discriminator, Generator, UnetGenerator

# Allocations, and calls that only read a number or detach a tensor. They compute nothing.
_NOT_COUNTED = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "lift_fresh",
    "_local_scalar_dense",
}
_CONVOLUTIONS = {"aten::convolution", "aten::convolution_backward"}


@dataclass
class Counts:
    """The operations of one forward and backward pass, and the bytes that are saved between the two.

    ``launches`` is the number of launches of each kernel. ``aten`` is the number of calls of each ATen
    operator, without views, allocations and reads of single numbers. ``parts`` is the number of launches and
    ATen calls in each named part of an iteration, with "" for those outside all parts. ``saved_bytes`` counts
    each storage once.
    """

    launches: Counter[str] = field(default_factory=Counter)
    aten: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    saved_bytes: int = 0


class DryRun(TorchDispatchMode):
    """A dispatch mode that counts the operations inside its block and calls ``on_launch`` for each launch.

    ``choices`` maps the name of each tuned choice to the number of configurations that would be timed on
    ``chip``. The options ``all_configs`` and ``all_forms`` are those of ``DryObserver``.
    """

    def __init__(
        self,
        on_launch: Callable[[_launch.Launch], None] = lambda launch: None,
        all_configs: bool = False,
        chip: _launch.Chip = _launch.Chip(),
        all_forms: bool = False,
    ) -> None:
        super().__init__()
        self.counts = Counts()
        self.on_launch = on_launch
        self.all_configs = all_configs
        self.all_forms = all_forms
        self.chip = chip
        self.choices: dict[str, int] = {}
        self._inside: list[str] = []

    def measured(self, choice: str, configs: int) -> None:
        self.choices[choice] = configs

    def _part(self) -> str:
        if not self._inside:
            return ""
        return self._inside[-1].removeprefix("fastcyclegan: ")

    def launched(self, launch: _launch.Launch) -> None:
        self.counts.launches[launch.kernel] += 1
        self.counts.parts[self._part()] += 1
        self.on_launch(launch)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if kwargs is None:
            kwargs = {}
        if name in BODIES:
            # PyTorch turns the mode off inside this handler. Turn it on again, so that the calls that the
            # operator makes are counted.
            with self:
                return BODIES[name](*args, **kwargs)
        if name.startswith("profiler::"):
            # This call computes nothing: it begins or ends a named part.
            result = func(*args, **kwargs)
            if "enter" in name:
                self._inside.append(args[0])
            elif self._inside:
                self._inside.pop()
            return result
        if not func.is_view and name.removeprefix("aten::") not in _NOT_COUNTED:
            self.counts.aten[name.removeprefix("aten::")] += 1
            self.counts.parts[self._part()] += 1
        if name in _CONVOLUTIONS:
            return _convolution(func, args)
        return func(*args, **kwargs)


def _convolution(func: Any, args: Any) -> Any:
    """Return uninitialised tensors in place of the results of the convolution ``func``.

    They have the memory layout of the input, which cuDNN and oneDNN would also choose.
    """
    in_channels_last = args[0].is_contiguous(memory_format=torch.channels_last)

    def uninitialised(t: Tensor) -> Tensor:
        layout = torch.contiguous_format
        if in_channels_last and t.dim() == 4:
            layout = torch.channels_last
        return torch.empty(t.shape, dtype=t.dtype, memory_format=layout)

    shapes = func(*tree_map_only(Tensor, lambda t: t.to("meta"), args))
    return tree_map_only(Tensor, uninitialised, shapes)


@contextlib.contextmanager
def dry_run(**options: Any) -> Iterator[DryRun]:
    """Run the block as a dry run (see the top of this module). ``options`` are those of ``DryRun``."""
    run = DryRun(**options)
    with _launch.observe_dry(run), run:
        yield run


@contextlib.contextmanager
def counted(parameters: Iterable[Tensor]) -> Iterator[Counts]:
    """Run the block as a dry run, and yield the ``Counts`` of its operations.

    ``saved_bytes`` is set when the block ends. It covers all storages except those of ``parameters``.
    """
    weights = {p.untyped_storage().data_ptr() for p in parameters}
    saved: dict[int, tuple[int, Any]] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            # The storage is kept alive so that its address is not reused.
            saved[storage.data_ptr()] = (storage.nbytes(), storage)
        return t

    with dry_run() as run, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        yield run.counts
    run.counts.saved_bytes = sum(size for size, _ in saved.values())


def count(net: nn.Module, x: Tensor) -> Counts:
    """Count the operations of a forward pass of ``net`` on ``x`` and of the backward pass.

    The backward pass computes the gradients of the parameters and of x.
    """
    x = x.detach().requires_grad_()
    with counted(net.parameters()) as counts:
        y = net(x)
        y.backward(torch.empty_like(y))
    return counts


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "generator, 9 blocks": Generator,
    "discriminator": Discriminator,
    "U-Net, 8 levels": UnetGenerator,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "PyTorch": {"impl": "reference"},
    "kernels": {"impl": "triton"},
    "kernels, recompute=False": {"impl": "triton", "recompute": False},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def count_network(network: str, variant: str, precision: str, size: int = 256) -> Counts:
    """Count the operations of a forward and backward pass of a network on one image.

    ``network``, ``variant`` and ``precision`` are keys of NETWORKS, VARIANTS and DTYPES. The image is
    ``size`` pixels square. Each variant has the layout in which it makes the fewest calls: channels_last for
    the kernels, and contiguous for PyTorch's operators.
    """
    layout = torch.channels_last
    if variant == "PyTorch":
        layout = torch.contiguous_format
    dtype = DTYPES[precision]
    net = NETWORKS[network](**VARIANTS[variant]).to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
    image = torch.zeros(1, 3, size, size, dtype=dtype).contiguous(memory_format=layout)
    return count(net, image)


def main() -> None:
    """Print how many launches and ATen calls each network makes, and how much memory it saves for the
    backward pass, with PyTorch's operators and with the kernels.
    """
    parser = argparse.ArgumentParser(description=str(main.__doc__).partition("\n\n")[0])
    parser.add_argument(
        "size",
        type=int,
        nargs="?",
        default=256,
        help="height and width of the image in pixels, a multiple of 256 because of the U-Net (default: 256)",
    )
    size = parser.parse_args().size
    if size < 256 or size % 256:
        parser.error(f"size must be a multiple of 256 because of the U-Net, got {size}")
    print(
        f"One forward and backward pass at {size} x {size}, batch 1. MiB: memory saved for the backward pass,"
        " without the weights; each storage is counted once."
    )
    print(f"{'':52}{'launches':>9}{'ATen calls':>12}{'MiB':>8}")
    for name, precision, variant in itertools.product(NETWORKS, DTYPES, VARIANTS):
        counts = count_network(name, variant, precision, size)
        label = f"{name}, {precision}, {variant}"
        mebibytes = counts.saved_bytes / 2**20
        print(f"{label:52}{counts.launches.total():9}{counts.aten.total():12}{mebibytes:8.1f}")
