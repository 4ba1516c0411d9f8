"""What a phase trains: parameters, where their gradients are added up, and Adam."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.config import OptimConfig


def _like(nets: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    """Return the parameters of ``nets`` by place, those of all networks at a place together where they are
    alike.
    """
    columns = [list(net.parameters()) for net in nets]
    same = all(len(c) == len(columns[0]) for c in columns) and all(
        p.shape == place[0].shape and p.dtype == place[0].dtype
        for place in zip(*columns, strict=False)
        for p in place
    )
    return (
        [list(place) for place in zip(*columns, strict=True)]
        if same
        else [[p] for column in columns for p in column]
    )


def _is_dense(p: Tensor) -> bool:
    return p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last)


class Trained:
    """The parameters of a phase's networks and their Adam.

    ``in_place``: gradients are added up in memory of our own, zeroed in one pass, where the kernels add what
    each use of a weight gives; weights of networks that run as a pair lie side by side there, so that their
    gradients are summed in one launch. Else they are autograd's. ``lr`` is a tensor that Adam reads at each
    step.
    """

    def __init__(self, nets: Sequence[nn.Module], optim: OptimConfig, lr: Tensor, *, in_place: bool) -> None:
        self.places = _like(nets)
        parameters = [p for net in nets for p in net.parameters()]
        device = parameters[0].device
        fused = device.type in ("cuda", "cpu")
        options: dict[str, Any] = {"fused": True, "capturable": device.type == "cuda"} if fused else {}
        self.lr = lr
        self.optimizer = torch.optim.Adam(
            parameters, lr if fused else optim.lr, (optim.beta1, 0.999), **options
        )
        # Weights first, so that the two convolutions of a block lie one after the other.
        ordered = sorted((p for place in self.places for p in place), key=lambda p: p.dim() != 4)
        self.gradients: list[tuple[nn.Parameter, Tensor]] = []
        self.memory = None
        if in_place and all(_is_dense(p) and p.dtype == ordered[0].dtype for p in ordered):
            self.memory = torch.zeros(sum(p.numel() for p in ordered), dtype=ordered[0].dtype, device=device)
            start = 0
            for p in ordered:
                self.gradients.append((p, self.memory.as_strided(p.shape, p.stride(), start)))
                start += p.numel()

    @contextlib.contextmanager
    def gradients_ready(self) -> Iterator[None]:
        """Inside the block ``.grad`` is where gradients are added up, from zero; after it there is none."""
        try:
            if self.memory is not None:
                self.memory.zero_()
                for p, gradient in self.gradients:
                    p.grad = gradient if p.requires_grad else None
            yield
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Let Adam make its step, at the rate that ``lr`` holds."""
        if not isinstance(self.optimizer.param_groups[0]["lr"], Tensor):
            self.optimizer.param_groups[0]["lr"] = self.lr.item()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return Adam's state with the learning rate as a plain number; its tensors are live."""
        state = self.optimizer.state_dict()
        groups = [{**group, "lr": float(group["lr"]), "capturable": False} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave: steps and moments. Adam's settings, and how it is run, stay as
        they are.
        """
        (own,) = self.optimizer.param_groups
        how = {name: value for name, value in own.items() if name != "params"}
        saved = [
            {**group, "fused": how["fused"], "capturable": how["capturable"]}
            for group in state["param_groups"]
        ]
        self.optimizer.load_state_dict({**state, "param_groups": saved})
        self.optimizer.param_groups[0].update(how)
