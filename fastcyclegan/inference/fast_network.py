"""A generator as a module that computes the same images as fast as the device allows, without gradients."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from fastcyclegan.engine.choices import DTYPES
from fastcyclegan.engine.devices import has_bf16
from fastcyclegan.inference.network_runner import InferenceEngine


class FastNetwork(nn.Module):
    """Calls ``net`` like ``net(x)``, but in eval mode, without gradients, and faster.

    See ``Generator.fast``. The weights are those of ``net``, under the same names: a change of either is one
    of both, and moving either moves both. Copies and pickles contain the network.

    Raises ValueError for an unknown precision, for weights that are not float32, and for bf16 on a device
    without bf16 instructions.
    """

    net: nn.Module

    def __init__(self, net: nn.Module, precision: str = "fp32") -> None:
        super().__init__()
        if precision not in DTYPES:
            raise ValueError(f"fast: precision must be {' or '.join(DTYPES)}, got {precision!r}")
        # Not a child: the children and weights of the network are those of this module, too.
        self.__dict__["net"] = net
        for members in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            self.__dict__[members] = net.__dict__[members]
        self.precision = precision
        self.training = False
        self._engine = InferenceEngine(net, precision)
        self._checked: Any = None
        self._check()

    def _check(self) -> None:
        """Raise ValueError if the weights or their device do not suit the precision."""
        weight = next(self.net.parameters(), None)
        if weight is None or (weight.dtype, weight.device) == self._checked:
            return
        for name, p in self.net.named_parameters():
            if p.dtype != torch.float32:
                kind = str(p.dtype).removeprefix("torch.")
                raise ValueError(f"fast: the weights must be float32, got {kind} ({name}): use net.float()")
        if self.precision == "bf16" and not has_bf16(weight.device):
            raise ValueError(f"fast: {weight.device} has no bf16 instructions: use fast(precision='fp32')")
        self._checked = weight.dtype, weight.device

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            result: Tensor = self.net(x)  # which refuses it, or knows what it stands for
            return result
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("fast: this module gives no gradients: call the network itself for them")
        self._check()
        if _is_observed():
            return self._observed(x)
        if x.dim() not in (3, 4):
            return self._engine(x)  # the network refuses it
        is_single = x.dim() == 3
        result = self._engine(x[None] if is_single else x)
        if x.is_contiguous():
            result = result.contiguous()
        return result[0] if is_single else result

    @torch.no_grad()
    def _observed(self, x: Tensor) -> Tensor:
        """Call the network for a tracer, a compiler or a transform, which must see nothing but operators."""
        if any(module.training for module in self.net.modules()):
            raise RuntimeError(
                "fast: call eval() on the network before it is traced, compiled or transformed"
            )
        with torch.autocast(x.device.type, DTYPES[self.precision], enabled=self.precision == "bf16"):
            result: Tensor = self.net(x)
        return result

    def train(self, mode: bool = True) -> Self:
        """Return this module, which always stays in eval mode, also if it is part of one that is trained."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return FastNetwork, (self.net, self.precision)

    def extra_repr(self) -> str:
        return f"precision={self.precision}"


def _is_observed() -> bool:
    """Return whether a tracer, a compiler or a transform of torch.func watches the operators."""
    is_transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return is_transformed or torch.jit.is_tracing() or torch.compiler.is_compiling()
