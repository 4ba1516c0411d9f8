"""What is compared: the official order as people run it today and at its best, and ours by its layers. One
table for all that times them.

A provider of training steps is given the four networks' initial weights and batches; a provider of generators
one generator's weights. All start from the same weights. ``fault`` plants an error, for the tests of the
harness: a provider that computes something else must not get as far as a figure.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.official_order import OfficialCycleGAN
from bench.timing import Unserved
from fastcyclegan import reference
from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig, OptimConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.engine import Engine, resolve_precision, why_not_compiled
from fastcyclegan.nn.networks import Generator
from fastcyclegan.recipes.cyclegan import CycleGANRecipe, build_networks
from fastcyclegan.testing import copy_of, seeded_networks

# As fp32 holds it: on a GPU fused Adam reads its rate in fp32, also of float64 weights, and 2e-4 itself would
# be 2.5e-8 off there.
LR = float(np.float32(2e-4))
FAULT = 1.25

# A network runs in several ways (its input with a gradient or without, two providers): none of them may run
# uncompiled in silence.
torch._dynamo.config.recompile_limit = 64
torch._dynamo.config.fail_on_recompile_limit_hit = True


@dataclass(frozen=True)
class Provider:
    """One way to compute: the official order or ours, in which precision and layout, compiled in which
    mode."""

    title: str
    ours: bool = False
    strict: bool = False
    """fp32 products in fp32, where torch's default is TF32."""
    reduced: bool = False
    """bf16 under autocast and channels_last."""
    mode: str | None = None
    """torch.compile's."""
    channels_last: bool = False

    def precision(self, device: str) -> str:
        """Return "fp32" or "bf16"; ours takes what ``--precision auto`` means."""
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

    def require(self, device: str) -> None:
        """Raise Unserved where ``device`` has no use for this provider."""
        if self.strict and device != "cuda":
            raise Unserved("the same as torch's defaults: only GPUs have TF32")
        if self.mode == "max-autotune" and device != "cuda":
            raise Unserved("its CUDA graphs need a GPU")
        if self.reduced and self.mode is None and self.precision(device) == "fp32":
            raise Unserved("this processor has no bf16 instructions")
        if self.mode is not None and (reason := why_not_compiled(torch.device(device))):
            raise Unserved(reason)


PROVIDERS = {
    "official": Provider("official order, torch defaults"),
    "official_strict": Provider("official order, strict fp32", strict=True),
    "official_bf16": Provider("official order, bf16 autocast, channels_last", reduced=True),
    "official_compiled": Provider("the same, torch.compile", reduced=True, mode="default"),
    "official_max_autotune": Provider(
        "the same, torch.compile max-autotune, its CUDA graphs", reduced=True, mode="max-autotune"
    ),
    "ours": Provider("ours, uncompiled", ours=True),
    "ours_compiled": Provider("ours, --compile", ours=True, mode="default"),
}
# Not to be timed: the layout alone makes PyTorch's convolutions add in another order.
OFFICIAL_CHANNELS_LAST = Provider("official order, channels_last", channels_last=True)
# What PyTorch has in each precision: nobody need be nearer to float64 than the one that is furthest from it.
YARDSTICKS: dict[str, tuple[str | Provider, ...]] = {
    "fp32": ("official", OFFICIAL_CHANNELS_LAST),
    "bf16": ("official_bf16",),
}

# In which order providers are made ready: where time runs out, the last ones are missing.
TELLING = (
    "official",
    "ours_compiled",
    "official_bf16",
    "official_compiled",
    "ours",
    "official_strict",
    "official_max_autotune",
)


def planted(nets: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return copies of ``nets`` whose last weights, which no norm follows, are a quarter too large."""
    faulty = copy_of(nets)
    with torch.no_grad():
        for net in faulty.values():
            kernels = [p for p in net.parameters() if p.dim() == 4]
            kernels[-1].mul_(FAULT)
    return faulty


@dataclass
class TrainStep:
    """A provider's training iteration: ``run`` takes a batch and returns its losses in our order; ``nets`` by
    our names.
    """

    run: Callable[[Batch], Tensor]
    nets: dict[str, nn.Module]
    precision: str
    state: Callable[[], Any]
    """What it keeps from one iteration to the next: weights, moments, pools."""
    optimizers: list[torch.optim.Optimizer]
    mark: Callable[[Callable[[Callable[..., Any]], Callable[..., Any]]], None]
    """Wraps what begins the discriminators' phase, so that a profile shows where that is."""
    fakes: Callable[[int], Tensor]
    """The first n fakes of B and of A, [2, n, C, H, W]: as the timed step made them, kept by its pools until
    these are full.
    """


def train_step(
    provider: str | Provider,
    nets: Mapping[str, nn.Module],
    device: str,
    loss: LossConfig = LossConfig(),
    dtype: torch.dtype = torch.float32,
    config: ModelConfig = ModelConfig(),
    fault: bool = False,
    options: EngineConfig = EngineConfig(),
) -> TrainStep:
    """Return a provider (or the one of that name) with the weights of ``nets``, which are made by ``config``.

    ``options`` are those of our engine. ``dtype`` float64 makes the official order the truth that others are
    held to; without autocast in both. Raises Unserved.
    """
    if isinstance(provider, str):
        provider = PROVIDERS[provider]
    provider.require(device)
    if fault:
        nets = planted(nets)
    if provider.ours:
        return _ours(provider, nets, device, loss, dtype, config, options)
    official = _Official(provider, nets, device, loss, dtype)
    return TrainStep(
        official.step,
        official.nets,
        official.precision,
        official.state,
        official.optimizers,
        official.mark,
        official.fakes,
    )


def _precision(provider: Provider, device: str, dtype: torch.dtype) -> str:
    if dtype == torch.float64:
        return "fp32"
    return provider.precision(device)


def _ours(
    provider: Provider,
    nets: Mapping[str, nn.Module],
    device: str,
    loss: LossConfig,
    dtype: torch.dtype,
    config: ModelConfig,
    options: EngineConfig,
) -> TrainStep:
    precision = _precision(provider, device, dtype)
    own = {name: net.to(dtype) for name, net in build_networks(config).items()}
    for name, net in own.items():
        net.load_state_dict(nets[name].state_dict())
    recipe = CycleGANRecipe(loss)
    engine = Engine(
        recipe,
        own,
        OptimConfig(),
        torch.device(device),
        precision,
        provider.mode is not None,
        options,
    )

    def fakes(count: int) -> Tensor:
        return torch.stack([torch.stack(list(recipe.pools[side].slots[:count])) for side in "BA"])  # type: ignore[index]

    def mark(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        generators, discriminators = engine.phases
        engine.phases = (generators, replace(discriminators, run=wrap(discriminators.run)))

    optimizers: list[torch.optim.Optimizer] = list(engine.optimizers.values())
    return TrainStep(
        lambda batch: engine.step(batch, LR),
        engine.nets,
        precision,
        engine.state_dict,
        optimizers,
        mark,
        fakes,
    )


class _Compiled(nn.Module):
    """A compiled network whose outputs stay when its CUDA graphs run again: the official pool keeps images
    for later iterations.
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
    """The official order with weights of its own, iteration by iteration: what a TrainStep is made of."""

    def __init__(
        self,
        provider: Provider,
        nets: Mapping[str, nn.Module],
        device: str,
        loss: LossConfig,
        dtype: torch.dtype,
    ) -> None:
        self.provider, self.device, self.dtype, self.loss = provider, device, dtype, loss
        self.precision = _precision(provider, device, dtype)
        self.nets: dict[str, nn.Module] = {}
        run: dict[str, nn.Module] = {}
        for name, net in copy_of(nets, dtype).items():
            own = net.to(device=device, memory_format=provider.layout)  # type: ignore[call-overload]
            self.nets[name] = run[name] = own
            if provider.mode is not None:
                run[name] = _Compiled(own, provider.mode)
        self.model = OfficialCycleGAN(
            run["G_AB"],
            run["G_BA"],
            run["D_B"],
            run["D_A"],
            gan_mode=loss.gan_mode,
            pool_size=loss.pool_size,
            lr=LR,
            lambda_A=loss.lambda_A,
            lambda_B=loss.lambda_B,
            lambda_identity=loss.lambda_identity,
        )
        self.optimizers: list[torch.optim.Optimizer] = [self.model.optimizer_G, self.model.optimizer_D]

    def _placed(self, images: Tensor) -> Tensor:
        return images.to(self.device, self.dtype).contiguous(memory_format=self.provider.layout)

    def step(self, batch: Batch) -> Tensor:
        """Run one iteration and return its losses in our order."""
        if self.provider.mode == "max-autotune":
            torch.compiler.cudagraph_mark_step_begin()
        self.model.set_input(self._placed(batch.A), self._placed(batch.B))
        autocast = torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")
        with autocast, tf32(not self.provider.strict):
            self.model.optimize_parameters()
        losses = []
        for name, value in self.model.losses().items():
            if self.loss.lambda_identity > 0 or not name.startswith("idt"):
                losses.append(torch.as_tensor(value))
        return torch.stack(losses).detach()

    def state(self) -> Any:
        weights = [list(net.parameters()) for net in self.nets.values()]
        moments = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
        return [weights, moments, self.model.fake_A_pool.images, self.model.fake_B_pool.images]

    def fakes(self, count: int) -> Tensor:
        pools = (self.model.fake_B_pool, self.model.fake_A_pool)
        return torch.stack([torch.cat(pool.images[:count]) for pool in pools])

    def mark(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.model.backward_D_basic = wrap(self.model.backward_D_basic)  # type: ignore[method-assign]


def tf32(allowed: bool) -> AbstractContextManager[Any]:
    """Let convolutions take TF32 inside the block, as torch's default is, or not; nothing to do without a
    GPU.
    """
    if not torch.cuda.is_available():
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=allowed)


def generator(
    provider: str | Provider, net: nn.Module, device: str, fault: bool = False, **arguments: Any
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return a function from images to images, and its precision. ``net`` is a reference generator made
    with ``arguments``.
    """
    if isinstance(provider, str):
        provider = PROVIDERS[provider]
    provider.require(device)
    precision, layout = provider.precision(device), provider.layout
    if provider.ours:
        own: nn.Module = Generator(**arguments)
        own.load_state_dict(net.state_dict())
    else:
        own = copy.deepcopy(net)
    if fault:
        own = planted({"G": own})["G"]
    own = own.eval().to(device=device, memory_format=layout)  # type: ignore[call-overload]
    run: Any = own
    if provider.mode is not None:
        run = torch.compile(own, mode=provider.mode, dynamic=False)

    def translate(x: Tensor) -> Tensor:
        if provider.mode == "max-autotune":
            torch.compiler.cudagraph_mark_step_begin()
        autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
        with torch.inference_mode(), autocast, tf32(not provider.strict):
            return run(x.contiguous(memory_format=layout)).float()

    return translate, precision


def plain_networks(config: ModelConfig = ModelConfig(), seed: int = 0) -> dict[str, nn.Module]:
    """Return four ResNet and PatchGAN networks of the reference, nothing of ours, with the initial weights
    that ``seed`` gives both.
    """
    ours = seeded_networks(config, seed)
    n_blocks = int(config.netG.removeprefix("resnet_").removesuffix("blocks"))
    plain: dict[str, nn.Module] = {}
    for name, net in ours.items():
        if name.startswith("G"):
            plain[name] = reference.Generator(ngf=config.ngf, n_blocks=n_blocks)
        else:
            plain[name] = reference.Discriminator(ndf=config.ndf)
        plain[name].load_state_dict(net.state_dict())
    return plain
