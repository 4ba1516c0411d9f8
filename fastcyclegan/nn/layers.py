"""Layers for any network: instance norm fused with its activation, and a tanh that computes in fp32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.kernels import instance_norm
from fastcyclegan.kernels._checks import check_tensor
from fastcyclegan.kernels.dispatch import check_impl, is_autocast_on
from fastcyclegan.kernels.instance_norm import ACTS


def check_scriptable(impl: str) -> None:
    """Raise ValueError if ``impl`` requires the kernels: torch.jit.script uses PyTorch's own operators."""
    if impl == "triton":
        raise ValueError(
            "torch.jit.script cannot use the kernels: set impl='auto' or 'reference' to script a network with"
            " PyTorch's operators, or use torch.jit.trace"
        )


class FloatTanh(nn.Tanh):
    """A tanh that computes 16-bit input in fp32, and returns fp32 under autocast.

    Near +-1, the spacing of bf16 numbers is as large as a whole step of an 8-bit image.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.bfloat16, torch.float16):
            return torch.tanh(x)
        y = torch.tanh(x.float())
        if torch.jit.is_scripting():  # where autocast has no switch that could be read
            return y.to(x.dtype)
        return y if is_autocast_on(x) else y.to(x.dtype)


class InstanceNormAct(nn.modules.instancenorm._InstanceNorm):
    """``nn.InstanceNorm1d``, ``2d`` or ``3d`` fused with the activation that follows it.

    The input is [N, C, L], [N, C, H, W] or [N, C, D, H, W]; the dimension N is required. The output has the
    same shape. An optional ``residual`` is added after the norm and the activation. The state_dict and the
    arguments are the same as torch's; ``options`` are arguments that newer versions of torch add, such as
    ``bias``. ``act`` is "none", "relu" or "leaky_relu" (``slope`` is its negative slope), and ``impl`` is as
    in ``fastcyclegan.kernels.instance_norm``. With ``track_running_stats``, torch's own operator is used, and
    impl="triton" raises ValueError because the kernels keep no running statistics.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        act: str = "none",
        slope: float = 0.2,
        impl: str = "auto",
        **options: Any,
    ) -> None:
        check_impl(impl)
        if act not in ACTS:
            raise ValueError(f"InstanceNormAct: act must be one of {', '.join(ACTS)}, got {act!r}")
        if track_running_stats and impl == "triton":
            raise ValueError(
                "InstanceNormAct: impl='triton' does not support running statistics; use impl='auto' or"
                " track_running_stats=False"
            )
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options
        )
        self.act, self.slope, self.impl = act, slope, impl

    def _check_input_dim(self, input: Tensor) -> None:
        check_tensor("InstanceNormAct", input)
        if input.dim() not in (3, 4, 5):
            shapes = "[N, C, L], [N, C, H, W] or [N, C, D, H, W]"
            raise ValueError(f"InstanceNormAct: input must be {shapes}, got shape {tuple(input.shape)}")
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"InstanceNormAct: input must have {self.num_features} channels, got shape"
                f" {tuple(input.shape)}"
            )

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if torch.jit.is_scripting():
            return self._by_torch(input, residual)
        else:
            self._check_input_dim(input)
            return self._run(input, residual)

    def __prepare_scriptable__(self) -> InstanceNormAct:
        check_scriptable(self.impl)
        return self

    def _run(self, input: Tensor, residual: Tensor | None) -> Tensor:
        if not self.track_running_stats:
            options: dict[str, Any] = {
                "eps": self.eps,
                "act": self.act,
                "slope": self.slope,
                "impl": self.impl,
            }
            return instance_norm(input, self.weight, self.bias, residual=residual, **options)
        return self._by_torch(input, residual)

    def _by_torch(self, input: Tensor, residual: Tensor | None) -> Tensor:
        y = reference.contiguous_gradient(self._apply_instance_norm(input))
        if self.act == "relu":
            y = F.relu(y)
        elif self.act == "leaky_relu":
            y = F.leaky_relu(y, self.slope)
        return y if residual is None else y + residual

    def extra_repr(self) -> str:
        act = self.act
        if act == "leaky_relu":
            act += f", slope={self.slope}"
        return f"{super().extra_repr()}, act={act}, impl={self.impl}"
