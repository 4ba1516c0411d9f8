"""How an iteration is run: device, precision, memory layout, torch.compile and the optimizers. The only place that knows them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.config import OptimConfig, RunConfig
from fastcyclegan.data.source import Batch
from fastcyclegan.errors import UserError
from fastcyclegan.kernels import accumulating
from fastcyclegan.kernels._backend import describe_backends
from fastcyclegan.networks import check_impl, computed_by, set_impl
from fastcyclegan.recipes.cyclegan import CycleGAN, Phase


def resolve_device(config: RunConfig) -> torch.device:
    """Return the device that ``config`` asks for. Raises UserError for one that this machine does not have."""
    name = config.device
    if config.gpu_ids is not None:
        name = "cpu" if config.gpu_ids == "-1" else f"cuda:{config.gpu_ids}"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name}: torch {torch.__version__} sees no CUDA GPU on this machine")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: this machine has {torch.cuda.device_count()} CUDA GPU(s), numbered from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device mps: torch {torch.__version__} sees no Apple GPU on this machine")
    return device


def _has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_precision(precision: str, device: torch.device, compiled: bool) -> str:
    """Return "fp32" or "bf16". Raises UserError for bf16 on a GPU without it."""
    if precision == "auto":
        return "bf16" if _has_bf16(device) and (compiled or device.type == "cuda") else "fp32"
    if precision == "bf16" and device.type == "cuda" and not _has_bf16(device):
        raise UserError(f"precision bf16: {torch.cuda.get_device_name(device)} has no bf16; use --precision fp32")
    return precision


def require_impl(impl: str, device: torch.device) -> None:
    """Raise UserError for an ``impl`` that cannot serve ``device``."""
    try:
        check_impl(impl, device)
    except ValueError as error:
        raise UserError(str(error)) from None


def why_not_compiled(device: torch.device) -> str:
    """Return "" where torch.compile works for ``device``, else one line saying why not: found out by compiling something tiny."""
    from torch._inductor import cpp_builder, exc

    if device.type == "mps":
        return "torch.compile is not used on Apple GPUs"
    if device.type == "cpu":
        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            return "no C++ compiler found (on Debian or Ubuntu: apt-get install g++)"
    try:
        torch.compile(lambda x: torch.cos(x) + 1)(torch.zeros(64, device=device))
    # Whatever the compiler, its headers or its linker raise: the reason is reported and training goes on uncompiled.
    except Exception as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


class Engine:
    """Runs iterations of a recipe on a device.

    ``nets`` are the recipe's networks as ordinary modules, moved to the device in channels_last; ``optimizers`` one Adam a phase.
    ``compiled`` compiles the networks; the caller has asked ``why_not_compiled`` before.
    """

    def __init__(
        self,
        recipe: CycleGAN,
        nets: dict[str, nn.Module],
        optim: OptimConfig,
        device: torch.device,
        precision: str = "fp32",
        compiled: bool = False,
    ) -> None:
        self.recipe, self.device, self.precision, self.compiled = recipe, device, precision, compiled
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        self.nets = {name: net.to(device, memory_format=torch.channels_last) for name, net in nets.items()}  # type: ignore[call-overload]
        for name in recipe.twice_differentiated:
            set_impl(self.nets[name], "reference")
        self._runs = {name: self._compile(name, net) for name, net in self.nets.items()}
        self.optimizers = {phase.name: self._adam(phase, optim) for phase in recipe.phases}

    def _compile(self, name: str, net: nn.Module) -> Any:
        return torch.compile(net) if self.compiled and name not in self.recipe.twice_differentiated else net

    def _adam(self, phase: Phase, optim: OptimConfig) -> torch.optim.Adam:
        parameters = [p for name in phase.trains for p in self.nets[name].parameters()]
        return torch.optim.Adam(parameters, optim.lr, (optim.beta1, 0.999), fused=self.device.type in ("cuda", "cpu"))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def step(self, batch: Batch, lr: float) -> Tensor:
        """Run one iteration and return its losses, [len(recipe.loss_names)] on the device, without waiting for them."""
        losses: list[Tensor] = []
        for phase in self.recipe.phases:
            optimizer = self.optimizers[phase.name]
            for group in optimizer.param_groups:
                group["lr"] = lr
            with _frozen([p for name in phase.freezes for p in self.nets[name].parameters()]):
                with self._autocast():
                    terms = phase.losses(self._runs, batch)
                # The sum of the terms, in one backward: each term's gradient is 1.
                # A generator runs three times: the kernels add its weights' gradients where the first ones are.
                with accumulating():
                    torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses += terms.values()
        return torch.stack(losses).detach()

    @torch.inference_mode()
    def translate(self, name: str, images: Tensor) -> Tensor:
        """Return what generator ``name`` makes of ``images`` [N, C, H, W], with dropout off and running statistics."""
        net = self.nets[name]
        training = net.training
        net.eval()
        with self._autocast():
            result = net(images)
        net.train(training)
        return result

    def describe(self) -> dict[str, str]:
        """Return what was chosen, for the table at the start."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"{torch.get_num_threads()} threads"
        eager = self.recipe.twice_differentiated
        compiled = f"all but {' '.join(eager)} (wgangp differentiates them twice)" if eager else "yes"
        return {
            "device": f"{self.device} ({name})",
            "precision": self.precision,
            "layout": "channels_last",
            "compiled": compiled if self.compiled else "no",
            "impl": self._impl(),
            **({"convolutions": describe_backends(self.device)} if "triton" in self._impl() else {}),
        }

    def _impl(self) -> str:
        used = {name: computed_by(net) for name, net in self.nets.items()}
        if len(set(used.values())) == 1:
            return used["G_AB"]
        reason = "differentiated twice by wgangp"
        return ", ".join(f"{name} {impl}" + f" ({reason})" * (name in self.recipe.twice_differentiated) for name, impl in used.items())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next iteration depends on but the plan. The tensors are live: copy them before the next step."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {
            "nets": {name: net.state_dict() for name, net in self.nets.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "recipe": self.recipe.state_dict(),
            "rng": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        for name, net in self.nets.items():
            net.load_state_dict(state["nets"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.recipe.load_state_dict(state["recipe"], self.device)
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)


@contextlib.contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Take ``parameters`` out of the graph inside the block; those that the user froze stay frozen after it."""
    thawed = [p for p in parameters if p.requires_grad]
    for p in thawed:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in thawed:
            p.requires_grad_(True)
