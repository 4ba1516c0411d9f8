"""Manage the parameters that one phase trains, the memory for their gradients, and their Adam optimizer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.settings.optim import OptimConfig


def _kinds(net: nn.Module) -> list[tuple[torch.Size, torch.dtype]]:
    return [(p.shape, p.dtype) for p in net.parameters()]


def _by_place(nets: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    """Return the parameters of ``nets`` grouped by position.

    If all networks have parameters of the same shapes and dtypes, a group contains the parameters at one
    position in each network. Otherwise each parameter is a group by itself.
    """
    columns = [list(net.parameters()) for net in nets]
    alike = all(_kinds(net) == _kinds(nets[0]) for net in nets)
    if alike:
        return [list(place) for place in zip(*columns, strict=True)]
    return [[p] for p in itertools.chain.from_iterable(columns)]


def _is_dense(p: Tensor) -> bool:
    return p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last)


def _adam(nets: Sequence[nn.Module], optim: OptimConfig, lr: Tensor) -> torch.optim.Adam:
    """Return an Adam optimizer for the parameters of ``nets``.

    On CUDA devices and the CPU it is fused, and reads its learning rate from ``lr``.
    """
    parameters = list(itertools.chain.from_iterable(net.parameters() for net in nets))
    kind, betas = parameters[0].device.type, (float(optim.beta1), 0.999)
    if kind not in ("cuda", "cpu"):
        return torch.optim.Adam(parameters, optim.lr, betas)
    return torch.optim.Adam(parameters, lr, betas, fused=True, capturable=kind == "cuda")


class PhaseOptimizer:
    """The parameters of a phase's networks, and the Adam optimizer that updates them.

    If ``in_place`` is true, gradients accumulate in one block of memory, which is zeroed in one pass. Each
    time a weight is used, the kernels add its gradient there. The gradients of two networks that run as a
    pair are adjacent, so that one launch can sum them. If ``in_place`` is false, autograd allocates the
    gradients. ``lr`` is a tensor from which Adam reads the learning rate at each step.
    """

    def __init__(self, nets: Sequence[nn.Module], optim: OptimConfig, lr: Tensor, *, in_place: bool) -> None:
        self.lr, self.adam = lr, _adam(nets, optim, lr)
        self.places = _by_place(nets)
        # Weights first, so that the two convolutions of a block are adjacent.
        ordered = sorted(itertools.chain.from_iterable(self.places), key=lambda p: p.dim() != 4)
        self.gradients: list[tuple[nn.Parameter, Tensor]] = []
        self.memory: Tensor | None = None
        if in_place and all(_is_dense(p) and p.dtype == ordered[0].dtype for p in ordered):
            self._lay_out_gradients(ordered)

    def _lay_out_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Allocate one block of memory for the gradients of ``parameters``, stored one after another."""
        first = parameters[0]
        size = sum(p.numel() for p in parameters)
        self.memory = memory = torch.zeros(size, dtype=first.dtype, device=first.device)
        start = 0
        for p in parameters:
            self.gradients.append((p, memory.as_strided(p.shape, p.stride(), start)))
            start += p.numel()

    @contextlib.contextmanager
    def gradients_ready(self) -> Iterator[None]:
        """Accumulate gradients from zero in ``.grad`` inside the block, and clear ``.grad`` after it."""
        try:
            if self.memory is not None:
                self.memory.zero_()
                for p, gradient in self.gradients:
                    p.grad = gradient if p.requires_grad else None
            else:
                # Another phase may have called these networks without freezing them.
                self.adam.zero_grad(set_to_none=True)
            yield
        finally:
            self.adam.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Take one Adam step at the learning rate in ``lr``."""
        if not isinstance(self.adam.param_groups[0]["lr"], Tensor):
            self.adam.param_groups[0]["lr"] = self.lr.item()
        self.adam.step()

    def state_dict(self) -> dict[str, Any]:
        """Return Adam's state, with the learning rate as a plain number. The tensors are live.

        Parameters that were not trained, because they are frozen, have no moments. Their numbers are listed
        as ``untrained``, so that moments that are missing for another reason are noticed.
        """
        state = self.adam.state_dict()
        groups = [{**group, "lr": float(group["lr"]), "capturable": False} for group in state["param_groups"]]
        untrained = [n for n in groups[0]["params"] if n not in state["state"]]
        saved = {**state, "param_groups": groups}
        return {**saved, "untrained": untrained} if untrained else saved

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore Adam's step counts and moments from a state that ``state_dict`` returned, as copies.

        Adam keeps its current settings and implementation.
        """
        (current,) = self.adam.param_groups
        settings = {name: value for name, value in current.items() if name != "params"}
        moments = {n: _laid_out(values, current["params"][n]) for n, values in state["state"].items()}
        self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})
        self.adam.param_groups[0].update(settings)


def _laid_out(values: Mapping[str, Tensor], p: nn.Parameter) -> dict[str, Tensor]:
    """Return copies of Adam's values for ``p``, with its memory format: fused Adam ignores their strides."""
    copies = {}
    for name, value in values.items():
        copies[name] = value.clone() if name == "step" else torch.empty_like(p).copy_(value)
    return copies
