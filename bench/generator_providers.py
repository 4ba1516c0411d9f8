"""Build the generators that the benches compare: the official one, ours, and those of other runtimes.

A provider receives the weights of one plain reference generator, a ResNet or a U-Net, and translates images
with them. ``fault``
injects an error, for the tests of the benches: no figure may be reported for a provider that computes a wrong
result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.other_runtimes import translator
from bench.providers import BUILD_ORDER, PROVIDERS, Provider, faulty_copies, require_compiler, tf32
from bench.timing import Unavailable
from fastcyclegan import reference
from fastcyclegan.engine import resolve_precision
from fastcyclegan.nn.networks import Generator, UnetGenerator


@dataclass(frozen=True)
class OnProcessor(Provider):
    """A provider of generators that is only timed on a CPU, in the precision ``fixed``."""

    fixed: str = "fp32"
    runtime: str = ""
    """The other program that runs the official generator: "onnxruntime" or "openvino"."""
    fast: bool = False
    """Use the module that ``Generator.fast`` returns."""

    def precision(self, device: str) -> str:
        return self.fixed

    def require(self, device: str) -> None:
        if device != "cpu":
            raise Unavailable("only timed on a CPU")
        if self.fixed == "bf16" and resolve_precision("auto", torch.device("cpu"), compiled=True) != "bf16":
            raise Unavailable("this processor has no bf16 instructions")


GENERATORS: dict[str, Provider] = {
    **PROVIDERS,
    "ours_fast_fp32": OnProcessor("fastcyclegan, Generator.fast(precision='fp32')", ours=True, fast=True),
    "ours_fast_bf16": OnProcessor(
        "fastcyclegan, Generator.fast(precision='bf16')", ours=True, fast=True, fixed="bf16"
    ),
    "onnxruntime": OnProcessor("official generator in onnxruntime, fp32", runtime="onnxruntime"),
    "openvino_fp32": OnProcessor("official generator in OpenVINO, fp32", runtime="openvino"),
    "openvino_bf16": OnProcessor("official generator in OpenVINO, bf16", runtime="openvino", fixed="bf16"),
}
# Those that need no compiler come before the compiled ones. If time runs out, the last ones are missing.
GENERATOR_BUILD_ORDER = (
    "official",
    "ours_fast_bf16",
    "ours_fast_fp32",
    "onnxruntime",
    "openvino_fp32",
    "openvino_bf16",
    *BUILD_ORDER[1:],
)


def runtime_of(name: str) -> str:
    """Return the other program that provider ``name`` runs in, or "" for torch."""
    provider = GENERATORS[name]
    return provider.runtime if isinstance(provider, OnProcessor) else ""


def is_fast(name: str) -> bool:
    """Return whether provider ``name`` is the module that ``Generator.fast`` returns."""
    provider = GENERATORS[name]
    return isinstance(provider, OnProcessor) and provider.fast


def generator(
    provider: str | Provider,
    net: nn.Module,
    device: str,
    fault: bool = False,
    *,
    as_trained: bool = False,
    **arguments: Any,
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return a function that translates images with a provider's generator, and its precision.

    ``net`` is a reference generator that was built with ``arguments``. With ``as_trained``, batch norms use
    the statistics of the images, as in training. Raises Unavailable if the provider cannot run on
    ``device``, or not in this way.
    """
    if isinstance(provider, str):
        provider = GENERATORS[provider]
    provider.require(device)
    if as_trained and isinstance(provider, OnProcessor):
        raise Unavailable("only translates in evaluation mode")
    if provider.mode is not None:
        # Translations are compiled even where the kernels replace the compiler in training.
        require_compiler(device)
    precision = provider.precision(device)
    if fault:
        net = faulty_copies({"G": net})["G"]
    if isinstance(provider, OnProcessor) and provider.runtime:
        return translator(provider.runtime, net, precision), precision
    network = _network(provider, net, arguments)
    if isinstance(provider, OnProcessor) and provider.fast:
        return _fast(network, precision), precision
    return _torch(provider, network.train(as_trained), device, precision), precision


def _network(provider: Provider, net: nn.Module, arguments: dict[str, Any]) -> nn.Module:
    """Return the provider's own network with the weights of the reference generator ``net``."""
    if not provider.ours:
        return copy.deepcopy(net)
    ours: type[nn.Module] = UnetGenerator if isinstance(net, reference.UnetGenerator) else Generator
    network = ours(**arguments, impl=provider.impl)
    network.load_state_dict(net.state_dict())
    return network


def _fast(network: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    generator: Any = network.eval()
    run: nn.Module = generator.fast(precision=precision)

    def translate(x: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = run(x)
            return result.float()

    return translate


def _torch(provider: Provider, network: nn.Module, device: str, precision: str) -> Callable[[Tensor], Tensor]:
    layout = provider.layout
    network = network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    run: Any = network
    if provider.mode is not None:
        run = torch.compile(network, mode=provider.mode, dynamic=False)

    def translate(x: Tensor) -> Tensor:
        if provider.mode == "max-autotune":
            torch.compiler.cudagraph_mark_step_begin()
        autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
        with torch.inference_mode(), autocast, tf32(not provider.strict):
            return run(x.contiguous(memory_format=layout)).float()

    return translate
