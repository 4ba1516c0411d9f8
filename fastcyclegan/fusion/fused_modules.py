"""The fused modules that replace torch's: same parameters and same function, one operator instead of two.

These classes are for existing modules: ``accelerate`` changes a module's class and adds the settings of the
fused layer, so everything that is registered, shared or hooked stays. If the kernels do not support an input
(on a CPU, in float64, or of a wrong shape), torch's own operators compute the same bits as before and raise
torch's own errors.
"""

from __future__ import annotations

from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan.kernels import instance_norm, reflect_conv2d
from fastcyclegan.kernels.backend_table import backend_of
from fastcyclegan.kernels.dispatch import CPP_DTYPES, Impl, is_autocast_on, resolve_impl
from fastcyclegan.kernels.norm_conv import ConvArgs, norm_conv
from fastcyclegan.nn.layer_checks import compute_dtype
from fastcyclegan.nn.layers import InstanceNormAct
from fastcyclegan.reference import contiguous_gradient

STRIDE_1: ConvArgs = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)


def _refuse_scripting() -> NoReturn:
    raise ValueError(
        "torch.jit.script does not support an accelerated network: call undo() of accelerate's report, or use"
        " torch.jit.trace"
    )


class _FusedInstanceNorm(InstanceNormAct):
    """``InstanceNormAct`` with the input checks of torch's norm for 1, 2 or 3 dimensions.

    The batch dimension N can be missing. The kernels return the memory layout of the input; torch's operator
    returns NCHW memory. ``inplace`` records whether the activation was in place, which determines what
    torch's operators keep for the backward.
    """

    inplace = False

    def _get_name(self) -> str:
        # Torch's name, for code that recognises layers by their repr.
        return type(self).__name__.removeprefix("Fused")

    def __prepare_scriptable__(self) -> NoReturn:
        _refuse_scripting()

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        # Torch's forward checks the input, adds N if it is missing, and calls _apply_instance_norm.
        y: Tensor = super(InstanceNormAct, self).forward(input)
        if residual is None:
            return y
        return y + residual

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        if resolve_impl("InstanceNorm", self.impl, input) != "reference":
            return instance_norm(
                input, self.weight, self.bias, eps=self.eps, act=self.act, slope=self.slope, impl=self.impl
            )
        if input.dim() > 2 and input.shape[0] == 0:
            # Torch 2.13's operator fails on an empty batch.
            return instance_norm(
                input, self.weight, self.bias, eps=self.eps, act=self.act, slope=self.slope, impl="reference"
            )
        y = contiguous_gradient(super()._apply_instance_norm(input))
        if self.act == "relu":
            return F.relu(y, self.inplace)
        if self.act == "leaky_relu":
            return F.leaky_relu(y, self.slope, self.inplace)
        return y


class FusedInstanceNorm1d(_FusedInstanceNorm, nn.InstanceNorm1d):
    """``nn.InstanceNorm1d`` fused with the activation after it. The input is [N, C, L] or [C, L]."""

    _check_input_dim = nn.InstanceNorm1d._check_input_dim


class FusedInstanceNorm2d(_FusedInstanceNorm, nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` fused with the activation after it. The input is [N, C, H, W] or [C, H, W]."""

    _check_input_dim = nn.InstanceNorm2d._check_input_dim


class FusedInstanceNorm3d(_FusedInstanceNorm, nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` fused with the activation after it.

    The input is [N, C, D, H, W] or [C, D, H, W].
    """

    _check_input_dim = nn.InstanceNorm3d._check_input_dim


class ReflectConv2d(nn.Conv2d):
    """A convolution with reflection padding of ``border`` pixels per side, stride 1 and an odd square kernel.

    Input and output are [N, C, H, W] or [C, H, W]. The input is kept for the backward, but not its padded
    copy. The result has the same layout as torch's: channels_last if the input or the weight is. The kernels
    work in channels_last, so an input in any other layout is converted for them, and the result is converted
    back.
    """

    border: int
    impl: str

    def _get_name(self) -> str:
        return "Conv2d"

    def __prepare_scriptable__(self) -> NoReturn:
        _refuse_scripting()

    def forward(self, input: Tensor) -> Tensor:
        impl = self._impl_for(input)
        if impl == "reference":
            return F.conv2d(F.pad(input, (self.border,) * 4, mode="reflect"), self.weight, self.bias)
        if input.dim() == 3:
            out: Tensor = self(input[None])[0]
            return out
        dtype = compute_dtype(input, self.weight)
        x = input.to(dtype)
        backend = backend_of("reflect_conv", x, dtype, 1, self.out_channels, self.kernel_size[0])
        if impl == "cpp" or backend == "triton":
            out = reflect_conv2d(x, self.weight, self.bias, padding=self.border, impl=self.impl)
        else:
            x = x.contiguous(memory_format=torch.channels_last)
            out = norm_conv(
                x,
                self.weight,
                self.bias,
                STRIDE_1,
                norm=False,
                border=self.border,
                required=self.impl == "triton",
            )
        if _is_channels_last(input) or _is_channels_last(self.weight):
            return out
        return out.contiguous()

    def _impl_for(self, x: Tensor) -> Impl:
        """Return the implementation that computes this convolution of x.

        Inputs that torch rejects are left to torch, so that torch's own error is raised.
        """
        if not isinstance(x, Tensor) or x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            return "reference"
        if x.device != self.weight.device:
            return "reference"
        sides, weight = min(x.shape[-2:]), self.weight
        if self.border >= sides or sides + 2 * self.border < self.kernel_size[0]:
            return "reference"
        if x.dtype != weight.dtype and not is_autocast_on(x):
            return "reference"
        impl = resolve_impl("ReflectConv2d", self.impl, x)
        if impl == "cpp" and compute_dtype(x, weight) not in CPP_DTYPES:
            return "reference"
        return impl

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, border={self.border}, impl={self.impl}"


def _is_channels_last(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


# --- Modules fused into a neighbour -------------------------------------------------------------------------


class _FusedAway(nn.Module):
    """The identity, in place of a layer whose work is done by the module that it was fused into."""

    def _get_name(self) -> str:
        return type(self).__name__.removeprefix("Fused")

    def forward(self, input: Tensor) -> Tensor:
        return input

    def extra_repr(self) -> str:
        plain = super().extra_repr()
        if not plain:
            return "fused"
        return f"{plain}, fused"


class FusedReLU(_FusedAway, nn.ReLU):
    """The identity, in place of a ReLU that the preceding norm applies."""


class FusedLeakyReLU(_FusedAway, nn.LeakyReLU):
    """The identity, in place of a LeakyReLU that the preceding norm applies."""


class FusedReflectionPad2d(_FusedAway, nn.ReflectionPad2d):
    """The identity, in place of a reflection padding that the following convolution applies."""
