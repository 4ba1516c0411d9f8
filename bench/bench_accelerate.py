"""Benchmark ``accelerate`` on networks from other fields against the same networks in plain PyTorch.

The benches measure the bytes that a training step saves for backward and, on a GPU, its time and peak memory.

The saved bytes are counted exactly, on both CPU and GPU. They are the sizes of all storages except the
weights. The time is for forward and backward in bf16 and channels_last, where each round is one CUDA graph.
The results of the timed rounds are compared with float64, all gradients together as one vector.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.counts import info_of
from bench.machine import DEVICE, PeakMemory
from bench.operators import FAULT, ROUNDS
from bench.parity import least_allowed
from bench.plain_nets import NETS, SMALL_NETS, Net
from bench.timing import Entrant, Race, Steps, builders_of, clock
from fastcyclegan.devtools.dry_run import count
from fastcyclegan.fusion.accelerate import accelerate
from fastcyclegan.testing import PARITY_ULPS, assert_parity, relative_error

PROVIDERS = ["plain", "accelerated"]
INPUTS = 2
# The memory layout, by the number of dimensions of the input.
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

pytestmark = [pytest.mark.benchmark(timer=clock, warmup=False), pytest.mark.cost(cpu=10, cuda=20)]


def sizes(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} of {'x'.join(map(str, shape[2:]))}"


# --- Saved bytes --------------------------------------------------------------------------------------------


def counted(name: str, chosen: Net, provider: str) -> Entrant:
    build, shape = chosen
    net = build()
    if provider == "accelerated":
        accelerate(net, impl="triton")
    info = {**info_of(count(net, torch.zeros(shape))), "network": name, "images": sizes(shape)}
    return Entrant(lambda: None, info=info, cold=True)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", NETS)
def bench_accelerate_memory(race: Race, quick: bool, name: str, provider: str) -> None:
    nets = SMALL_NETS if quick else NETS
    group = f"counts of a step of a plain network, {name}, {sizes(nets[name][1])}, fp32"
    race(group, builders_of(PROVIDERS, lambda p: counted(name, nets[name], p)), rounds=1)


# --- Time ---------------------------------------------------------------------------------------------------


class TrainedNetwork:
    """A network with inputs and output gradients, from which the timed steps are built and checked."""

    def __init__(self, build: Callable[[], nn.Module], shape: tuple[int, ...], dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.layout = LAYOUTS[len(shape)]
        self.net = build().to(DEVICE, dtype, memory_format=self.layout)  # type: ignore[call-overload]
        self.dtype = dtype
        self.images = [torch.randn(shape, device=DEVICE, dtype=dtype) for _ in range(INPUTS)]
        self.gradients = [torch.randn_like(self.net(x)) for x in self.images]

    def steps(self, net: nn.Module, factor: float = 1.0) -> list[Callable[[], tuple[Tensor, ...]]]:
        """Return one function per input; each runs ``net`` and returns the output and all gradients."""
        kind = next(net.parameters()).dtype

        def one(x: Tensor, dy: Tensor) -> tuple[Tensor, ...]:
            x = x.to(kind, memory_format=self.layout).detach().requires_grad_()
            y = net(x) * factor
            return y.detach(), *torch.autograd.grad(y, [x, *net.parameters()], dy.to(kind))

        pairs = zip(self.images, self.gradients, strict=True)
        return [partial(one, x, dy) for x, dy in pairs]

    @cached_property
    def expected(self) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
        """The results of plain PyTorch for each input, in the timed dtype and in float64."""
        of_the_dtype = [step() for step in self.steps(self.net)]
        exact = copy.deepcopy(self.net).double()
        return of_the_dtype, [step() for step in self.steps(exact)]

    def check(self, provider: str, results: list[tuple[Tensor, ...]]) -> None:
        """Raise AssertionError if a step's output or gradients are not close enough to float64.

        The parity rule of ``fastcyclegan.testing`` sets the limit.
        """
        for n, (ours, reference, exact) in enumerate(zip(results, *self.expected, strict=True)):
            assert_parity(f"{provider}: output {n}", ours[0], reference[0], exact[0], self.dtype)
            truth = _vector(exact[1:])
            error = relative_error(_vector(ours[1:]), truth)
            of_the_dtype = relative_error(_vector(reference[1:]), truth)
            by_rule = 2 * of_the_dtype + PARITY_ULPS[self.dtype] * torch.finfo(self.dtype).eps
            allowed = max(by_rule, least_allowed("gradients", self.dtype))
            assert error <= allowed, (
                f"{provider}: gradients: relative error {error:.3e} against float64, allowed {allowed:.3e}"
            )

    def entrant(self, provider: str, fault: bool) -> Entrant:
        memory, net, factor = PeakMemory(), copy.deepcopy(self.net), 1.0
        if provider == "accelerated":
            accelerate(net)
            if fault:
                factor = FAULT
        todo = self.steps(net, factor)
        todo[0]()
        with memory:
            todo[0]()
        steps = Steps(lambda: todo, DEVICE)
        info: dict[str, Any] = {
            "operations": INPUTS,
            "pictures": INPUTS * len(self.images[0]),
            "peak_bytes": memory.bytes,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        return Entrant(steps, lambda: self.check(provider, steps.results), info)


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors])


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", NETS)
def bench_accelerate_time(race: Race, quick: bool, fault: bool, name: str, provider: str) -> None:
    if DEVICE == "cpu" and not quick:
        pytest.skip("on a CPU both providers run the same operators")
    nets, dtype = NETS, torch.bfloat16
    if quick:
        # In 16 bits the gradients of a small network are mostly random; see parity.py.
        nets, dtype = SMALL_NETS, torch.float32
    build, shape = nets[name]
    trained = TrainedNetwork(build, shape, dtype)
    group = f"step of a plain network, {name}, {sizes(shape)}, {DEVICE}"
    race(group, builders_of(PROVIDERS, lambda p: trained.entrant(p, fault)), ROUNDS[DEVICE], seconds=10)
