"""Build the implementations that the benches compare, called providers.

They are the official training step, as people run it today and at its fastest, and that of fastcyclegan with
and without --compile. On a CPU, that flag only selects bf16, because the C++ kernels replace the compiler;
there, fastcyclegan without its kernels is compared as well. All benches take them from the table PROVIDERS.

A provider of training steps trains any recipe that has a baseline (baselines.py). It receives the initial
weights of the recipe's networks, and then batches. All start from the same weights. ``fault`` injects an
error, for the tests of the benches: no figure may be reported for a provider that computes a wrong result.
``generator_providers.py`` has the providers of generators.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.baselines import Fakes, Wrap, baseline_of
from bench.timing import Unavailable
from fastcyclegan.config import EngineConfig, TrainConfig, default_config, with_changes
from fastcyclegan.data.batch import Batch
from fastcyclegan.engine import Engine, replaces_compiler, resolve_precision, why_not_compiled
from fastcyclegan.nn.networks import Impl
from fastcyclegan.testing import copy_of

# Rounded to fp32: on a GPU fused Adam reads its learning rate in fp32, even for float64 weights, and 2e-4
# itself would be off by 2.5e-8 there.
LR = float(np.float32(2e-4))
FAULT = 1.25

# A network runs in several ways (input with or without a gradient, two providers). None of them may silently
# fall back to running uncompiled.
torch._dynamo.config.recompile_limit = 64
torch._dynamo.config.fail_on_recompile_limit_hit = True


@dataclass(frozen=True)
class Provider:
    """One implementation to compare, with its precision, memory layout and compile mode.

    It is fastcyclegan's if ``ours`` is true, otherwise the official one.
    """

    title: str
    ours: bool = False
    strict: bool = False
    """Compute fp32 convolutions in fp32, not in TF32, which is torch's default."""
    reduced: bool = False
    """Use bf16 autocast and channels_last."""
    mode: str | None = None
    """The mode of torch.compile, or None to run uncompiled."""
    channels_last: bool = False
    impl: Impl = "auto"
    """What computes fastcyclegan's networks."""

    def precision(self, device: str) -> str:
        """Return "fp32" or "bf16". fastcyclegan uses the precision that ``--precision auto`` selects."""
        if self.ours:
            return resolve_precision("auto", torch.device(device), self.mode is not None)
        if self.reduced:
            return resolve_precision("auto", torch.device(device), compiled=True)
        return "fp32"

    @property
    def layout(self) -> torch.memory_format:
        if self.ours or self.reduced or self.channels_last:
            return torch.channels_last
        return torch.contiguous_format

    def compiles(self, device: str) -> bool:
        """Return whether torch.compile compiles the training step on ``device``.

        It does not where the C++ kernels compute fastcyclegan's networks.
        """
        if self.mode is None:
            return False
        return not self.ours or not replaces_compiler(self.impl, torch.device(device))

    def require(self, device: str) -> None:
        """Raise Unavailable if this provider cannot train on ``device``, or would duplicate another one."""
        if self.strict and device != "cuda":
            raise Unavailable("identical to torch's defaults here: only GPUs have TF32")
        if self.mode == "max-autotune" and device != "cuda":
            raise Unavailable("max-autotune uses CUDA graphs, which need a GPU")
        if self.reduced and self.mode is None and self.precision(device) == "fp32":
            raise Unavailable("this processor has no bf16 instructions")
        if self.impl == "reference" and device != "cpu":
            raise Unavailable("only timed on a CPU")
        if self.compiles(device):
            require_compiler(device)


def require_compiler(device: str) -> None:
    """Raise Unavailable if torch.compile does not work on ``device``."""
    if reason := why_not_compiled(torch.device(device)):
        raise Unavailable(reason)


PROVIDERS = {
    "official": Provider("official order, torch defaults"),
    "official_strict": Provider("official order, strict fp32", strict=True),
    "official_bf16": Provider("official order, bf16 autocast, channels_last", reduced=True),
    "official_compiled": Provider(
        "official order, bf16 autocast, channels_last, torch.compile", reduced=True, mode="default"
    ),
    "official_max_autotune": Provider(
        "official order, bf16 autocast, channels_last, torch.compile max-autotune with CUDA graphs",
        reduced=True,
        mode="max-autotune",
    ),
    "ours": Provider("fastcyclegan, without --compile", ours=True),
    "ours_compiled": Provider("fastcyclegan, --compile", ours=True, mode="default"),
    "ours_without_kernels": Provider(
        "fastcyclegan without its kernels, impl='reference'", ours=True, impl="reference"
    ),
}
# Never timed, only used to measure rounding: in another layout PyTorch's convolutions sum in another order.
OFFICIAL_CHANNELS_LAST = Provider("official order, channels_last", channels_last=True)
# PyTorch's implementations in each precision. No provider has to be closer to float64 than the least accurate
# of these.
OFFICIAL_BY_PRECISION: dict[str, tuple[str | Provider, ...]] = {
    "fp32": ("official", OFFICIAL_CHANNELS_LAST),
    "bf16": ("official_bf16",),
}

# The order in which providers are built. If time runs out, the last ones are missing.
BUILD_ORDER = (
    "official",
    "ours_compiled",
    "official_bf16",
    "official_compiled",
    "ours",
    "ours_without_kernels",
    "official_strict",
    "official_max_autotune",
)


def faulty_copies(nets: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return copies of ``nets`` with an injected fault.

    The last weights, which no norm follows, are a quarter too large.
    """
    faulty = copy_of(nets)
    with torch.no_grad():
        for net in faulty.values():
            kernels = [p for p in net.parameters() if p.dim() == 4]
            kernels[-1].mul_(FAULT)
    return faulty


@dataclass
class TrainStep:
    """The training iteration of a provider.

    ``run`` takes a batch and returns its losses in fastcyclegan's order. ``nets`` contains the networks under
    the recipe's names.
    """

    run: Callable[[Batch], Tensor]
    nets: dict[str, nn.Module]
    precision: str
    state: Callable[[], Any]
    """Returns everything that carries over to the next iteration: weights, moments, the recipe's state."""
    optimizers: list[torch.optim.Optimizer]
    mark: Callable[[Wrap], None]
    """Wraps the function that starts the discriminators' phase, so that a profile shows where it starts."""
    fakes: Fakes
    """Returns the first images that the timed step generated, [kinds, n, C, H, W]."""


def train_step(
    provider: str | Provider,
    nets: Mapping[str, nn.Module],
    device: str,
    config: TrainConfig = default_config(),
    dtype: torch.dtype = torch.float32,
    fault: bool = False,
    options: EngineConfig = EngineConfig(),
) -> TrainStep:
    """Return the training step of ``provider`` with the weights of ``nets``.

    ``provider`` can be a key of PROVIDERS. ``config`` names the recipe, and contains the settings of ``nets``
    and of the losses; ``options`` are those of fastcyclegan's engine. With ``dtype`` float64, no provider
    uses autocast, and the official training step is the truth that other results are compared with. Raises
    Unavailable if the provider cannot run on ``device``, and UserError if the recipe has no baseline.
    """
    if isinstance(provider, str):
        provider = PROVIDERS[provider]
    provider.require(device)
    if fault:
        nets = faulty_copies(nets)
    if provider.ours:
        return _ours(provider, nets, device, config, dtype, options)
    official = _Official(provider, nets, device, config, dtype)
    return TrainStep(
        official.step,
        official.nets,
        official.precision,
        official.state,
        official.order.optimizers,
        official.order.mark,
        official.order.fakes,
    )


def _precision(provider: Provider, device: str, dtype: torch.dtype) -> str:
    if dtype == torch.float64:
        return "fp32"
    return provider.precision(device)


def _ours(
    provider: Provider,
    nets: Mapping[str, nn.Module],
    device: str,
    config: TrainConfig,
    dtype: torch.dtype,
    options: EngineConfig,
) -> TrainStep:
    precision = _precision(provider, device, dtype)
    if provider.impl != "auto":
        config = with_changes(config, {"model": {"impl": provider.impl}})
    recipe = config.make_recipe()
    networks = {name: net.to(dtype) for name, net in recipe.build_networks().items()}
    for name, net in networks.items():
        net.load_state_dict(nets[name].state_dict())
    engine = Engine(
        recipe,
        networks,
        config.optim,
        torch.device(device),
        precision,
        provider.compiles(device),
        options,
    )

    def mark(wrap: Wrap) -> None:
        phases = []
        for phase in engine.phases:
            if phase.trains and set(phase.trains).isdisjoint(recipe.generators):
                phase = replace(phase, run=wrap(phase.run))
            phases.append(phase)
        engine.phases = tuple(phases)

    optimizers: list[torch.optim.Optimizer] = list(engine.optimizers.values())
    return TrainStep(
        lambda batch: engine.step(batch, LR),
        engine.nets,
        precision,
        engine.state_dict,
        optimizers,
        mark,
        baseline_of(recipe.name).fakes(engine),
    )


class _Compiled(nn.Module):
    """A compiled network whose outputs remain valid when its CUDA graphs run again.

    The official pool needs this, because it stores images for later iterations.
    """

    def __init__(self, net: nn.Module, mode: str) -> None:
        super().__init__()
        self.net, self.keep = torch.compile(net, mode=mode), mode == "max-autotune"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        if self.keep:
            return y.clone()
        return y


class _Official:
    """The official training step on its own copy of the weights, as ``provider`` runs it."""

    def __init__(
        self,
        provider: Provider,
        nets: Mapping[str, nn.Module],
        device: str,
        config: TrainConfig,
        dtype: torch.dtype,
    ) -> None:
        self.provider, self.device, self.dtype = provider, device, dtype
        self.precision = _precision(provider, device, dtype)
        self.loss_names = config.make_recipe().loss_names
        self.nets: dict[str, nn.Module] = {}
        run: dict[str, nn.Module] = {}
        for name, net in copy_of(nets, dtype).items():
            placed = net.to(device=device, memory_format=provider.layout)  # type: ignore[call-overload]
            self.nets[name] = run[name] = placed
            if provider.mode is not None:
                run[name] = _Compiled(placed, provider.mode)
        self.order = baseline_of(config.model.model).official(run, config, LR)

    def _placed(self, images: Tensor) -> Tensor:
        return images.to(self.device, self.dtype).contiguous(memory_format=self.provider.layout)

    def step(self, batch: Batch) -> Tensor:
        """Run one iteration and return its losses in fastcyclegan's order."""
        if self.provider.mode == "max-autotune":
            torch.compiler.cudagraph_mark_step_begin()
        placed = batch.with_images(self._placed)
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")
        with autocast, tf32(not self.provider.strict):
            losses = self.order.run(placed)
        return torch.stack([losses[name] for name in self.loss_names]).detach()

    def state(self) -> Any:
        weights = [list(net.parameters()) for net in self.nets.values()]
        moments = [optimizer.state_dict()["state"] for optimizer in self.order.optimizers]
        return [weights, moments, self.order.state()]


def tf32(allowed: bool) -> AbstractContextManager[Any]:
    """Return a context manager that allows TF32 in convolutions, which is torch's default, or forbids it.

    It does nothing without a GPU.
    """
    if not torch.cuda.is_available():
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=allowed)
