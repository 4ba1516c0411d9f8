"""Modules over the kernels: a fused norm layer for any project, and the pieces that the networks here are built from.

A ``Chain`` holds the layers of the official networks, one child each, so that names, keys and repr are theirs, and runs them in fewer
passes: norm + activation, the reflected border and the convolution after them become one operator, and a convolution's bias that the next
norm takes out again is not computed (its gradient is zero, which is what it is). On a device that the kernels do not serve, the layers run
one by one. A layer with hooks, or of another class than the official one, is called as the module that it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastcyclegan import reference
from fastcyclegan.kernels import instance_norm
from fastcyclegan.kernels._backend import backend_of
from fastcyclegan.kernels._dispatch import check_impl, resolve_impl
from fastcyclegan.kernels.instance_norm import ACTS
from fastcyclegan.kernels.norm_conv import norm_conv
from fastcyclegan.kernels.reflect_conv import reflect_conv
from fastcyclegan.kernels.residual_block import residual_block


class InstanceNormAct(nn.modules.instancenorm._InstanceNorm):
    """``nn.InstanceNorm1d``, ``2d`` or ``3d`` with the activation that follows it, in one operator; a residual may be added after both.

    Input [N, C, L], [N, C, H, W] or [N, C, D, H, W] (with the dimension N), output the same. State_dict and arguments are torch's
    (``options``: those that newer versions of torch add, as ``bias``); ``act`` is "none", "relu" or "leaky_relu" (negative ``slope``),
    ``impl`` as in ``fastcyclegan.kernels.instance_norm``. With ``track_running_stats`` it computes as torch does, and impl="triton" is
    refused: the kernels keep no running statistics.
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
            raise ValueError("InstanceNormAct: impl='triton' keeps no running statistics; use impl='auto' or track_running_stats=False")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options)
        self.act, self.slope, self.impl = act, slope, impl

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (3, 4, 5):
            wanted = "[N, C, L], [N, C, H, W] or [N, C, D, H, W]"
            raise ValueError(f"InstanceNormAct: input must be {wanted}, got shape {tuple(input.shape)}")
        if input.shape[1] != self.num_features:
            raise ValueError(f"InstanceNormAct: input must have {self.num_features} channels, got shape {tuple(input.shape)}")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        self._check_input_dim(input)
        if not self.track_running_stats:
            options: dict[str, Any] = {"eps": self.eps, "act": self.act, "slope": self.slope, "impl": self.impl}
            return instance_norm(input, self.weight, self.bias, residual=residual, **options)
        y = reference.ContiguousGradient.apply(self._apply_instance_norm(input))
        y = F.relu(y) if self.act == "relu" else F.leaky_relu(y, self.slope) if self.act == "leaky_relu" else y
        return y if residual is None else y + residual

    def extra_repr(self) -> str:
        slope = f", slope={self.slope}" if self.act == "leaky_relu" else ""
        return f"{super().extra_repr()}, act={self.act}{slope}, impl={self.impl}"


class FloatTanh(nn.Tanh):
    """tanh that computes and returns fp32 for 16-bit input: near +-1 a bf16 step is a whole step of an 8-bit picture."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)


class _ZeroGradient(torch.autograd.Function):
    """The identity on x; the other arguments get a gradient of zeros, all cut from one buffer."""

    @staticmethod
    def forward(x: Tensor, *cancelled: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.sizes, ctx.dtype = [b.shape for b in inputs[1:]], inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        zeros = grad.new_zeros(sum(size.numel() for size in ctx.sizes), dtype=ctx.dtype)
        return grad, *(z.view(size) for z, size in zip(zeros.split([size.numel() for size in ctx.sizes]), ctx.sizes, strict=True))


def _untouched(layer: nn.Module | None, *kinds: type[nn.Module]) -> bool:
    """Whether ``layer`` is exactly one of ``kinds``, with its own forward, and nobody listens to it."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if layer is None or type(layer) not in kinds or "forward" in layer.__dict__:
        return False
    return not (any(getattr(layer, name) for name in hooks) or _has_any_global_hook())


def _is_norm(layer: nn.Module | None) -> bool:
    return _untouched(layer, nn.InstanceNorm2d, reference.InstanceNorm2d) and not layer.track_running_stats  # type: ignore[union-attr]


def _is_conv(layer: nn.Module | None) -> bool:
    plain = _untouched(layer, nn.Conv2d, nn.ConvTranspose2d, reference.ResizeConv2d)
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)  # type: ignore[union-attr]


def _activation(layer: nn.Module) -> tuple[str, float] | None:
    if _untouched(layer, nn.ReLU):
        return "relu", 0.0
    return ("leaky_relu", layer.negative_slope) if _untouched(layer, nn.LeakyReLU) else None  # type: ignore[return-value]


def _reflects(conv: Any, x: Tensor, dtype: torch.dtype) -> bool:
    """Whether our kernels compute ``conv`` in ``dtype``: stride 1 on the bordered x alone, odd and square, one weight for all channels."""
    k = conv.weight.shape[2]
    plain = isinstance(conv, nn.Conv2d) and conv.padding == (0, 0) and conv.stride == conv.dilation == (1, 1) and conv.groups == 1
    plain = plain and conv.kernel_size == (k, k) and k % 2 == 1
    return plain and backend_of("reflect_conv", x, dtype, 1, conv.weight.shape[0], k) == "triton"


def _border(layer: nn.Module, following: nn.Module | None) -> int:
    """Return the border of a reflection pad that the convolution after it can take over, else 0."""
    if not (_untouched(layer, nn.ReflectionPad2d) and _is_conv(following)):
        return 0
    return layer.padding[0] if len(set(layer.padding)) == 1 else 0  # type: ignore[arg-type, index, return-value]


@dataclass
class _Flow:
    """What runs through a chain: x, and what is still to be done to it, in this order."""

    x: Tensor
    cancelled: list[Tensor]
    norm: nn.Module | None = None
    act: str = "none"
    slope: float = 0.0
    border: int = 0
    done: nn.Module | None = None  # a layer that was computed with the one before it

    def settle(self, residual: Tensor | None = None) -> Tensor:
        """Do what is still to be done, add ``residual``, and return x."""
        if self.norm is not None:
            norm, self.norm = self.norm, None
            options: dict[str, Any] = {"eps": norm.eps, "act": self.act, "slope": self.slope, "impl": "triton"}
            fits = residual is None or residual.dtype == self.x.dtype
            self.x = instance_norm(self.x, norm.weight, norm.bias, residual=residual if fits else None, **options)  # type: ignore[arg-type]
            self.act, residual = "none", None if fits else residual
        if self.border:
            self.x, self.border = F.pad(self.x, (self.border,) * 4, mode="reflect"), 0
        if residual is not None:
            self.x = residual + self.x
        return self.x

    def give_zeros(self) -> None:
        """Let x carry the gradient of zeros to the biases that were left out so far."""
        biases = [b for b in self.cancelled if b.requires_grad]
        self.cancelled.clear()
        if biases and torch.is_grad_enabled():
            self.x = _ZeroGradient.apply(self.x, *biases)

    def convolve(self, conv: Any, following: nn.Module | None, recompute: bool) -> None:
        """Replace x by its convolution, in one operator with what is still to be done before it, and with a tanh that follows."""
        bias = conv.bias
        if bias is not None and _is_norm(following):
            self.cancelled.append(bias)
            bias = None
        dtype = _compute_dtype(self.x, conv.weight)
        # Without autocast a picture of another dtype is an error, as it is in PyTorch.
        fits = self.x.dtype == dtype or torch.is_autocast_enabled(self.x.device.type)
        if self.border and fits and _reflects(conv, self.x, dtype):
            if self.x.dtype != dtype:
                border, self.border = self.border, 0
                self.x, self.border = self.settle().to(dtype), border
            self._reflect(conv, bias, following, recompute)
            return
        # A picture's three channels are not worth a pass of their own: PyTorch pads them.
        if self.x.dtype != dtype or (self.norm is None and (self.border == 0 or self.x.shape[1] < 8)):
            self.settle()
        x = self.x.contiguous(memory_format=torch.channels_last)
        transposed = isinstance(conv, nn.ConvTranspose2d)
        sizes = (conv.stride, conv.padding, conv.dilation, transposed, conv.output_padding, conv.groups)
        if self.norm is None and self.border == 0:
            self.x = _plain_conv(x, conv, bias)
            return
        self.x = norm_conv(x, conv.weight, bias, sizes, border=self.border, recompute=recompute, **self._norm_options())
        self.norm, self.act, self.border = None, "none", 0

    def _reflect(self, conv: Any, bias: Tensor | None, following: nn.Module | None, recompute: bool) -> None:
        """Replace x by its convolution in our kernels, with the norm, the border and the tanh around it."""
        tanh = _untouched(following, FloatTanh)
        biases = [] if bias is None else [bias]
        options: dict[str, Any] = {"padding": self.border, "tanh": tanh, "recompute": recompute, **self._norm_options()}
        self.x = reflect_conv(self.x, [conv.weight], biases, **options)
        self.norm, self.act, self.border, self.done = None, "none", 0, following if tanh else None

    def _norm_options(self) -> dict[str, Any]:
        if (norm := self.norm) is None:
            return {"norm": False}
        affine = {"norm_weight": norm.weight, "norm_bias": norm.bias}
        return {"norm": True, **affine, "eps": norm.eps, "act": self.act, "slope": self.slope}


def _plain_conv(x: Tensor, conv: Any, bias: Tensor | None) -> Tensor:
    if type(conv) is nn.ConvTranspose2d:
        sizes: Any = (conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
        return F.conv_transpose2d(x, conv.weight, bias, *sizes)
    return F.conv2d(x, conv.weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype that a convolution of ``x`` computes in here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class Chain(nn.Sequential):
    """An ``nn.Sequential`` of the official layers that the kernels run in fewer passes; same function, same state_dict.

    ``forward(x)``: as the layers one after the other. ``residual`` is added to the result. ``cancelled`` is for chains within chains: the
    list that gathers the biases which the outermost chain gives their zero gradient. ``recompute``: keep the convolutions' outputs for the
    backward and compute their normalised inputs again, else keep both.
    """

    impl = "auto"
    recompute = True

    def forward(self, x: Tensor, residual: Tensor | None = None, cancelled: list[Tensor] | None = None, start: int = 0) -> Tensor:
        if resolve_impl("Chain", self.impl, x) == "reference":
            for layer in list(self)[start:]:
                x = layer(x)
            return x if residual is None else residual + x
        if x.dim() == 3:
            # One picture without the dimension N, as torch's layers take it.
            return self(x[None], None if residual is None else residual[None], cancelled, start)[0]
        if x.dim() != 4:
            raise ValueError(f"Chain: x must be [N, C, H, W] or [C, H, W], got shape {tuple(x.shape)}")
        flow = _Flow(x.contiguous(memory_format=torch.channels_last), [] if cancelled is None else cancelled)
        for layer, following in self._pairs(start):
            if layer is flow.done:
                continue
            if cancelled is None and (following is None or (following is self[-1] and isinstance(following, FloatTanh))):
                # Before the last layer, so that the result is that layer's own and may be changed in place.
                flow.give_zeros()
            self._step(flow, layer, following)
        flow.settle(residual)
        if cancelled is None:
            flow.give_zeros()
        return flow.x

    def __getitem__(self, index: Any) -> Any:
        found: Any = super().__getitem__(index)
        if isinstance(index, slice):
            found.impl, found.recompute = self.impl, self.recompute
        return found

    def _pairs(self, start: int) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        layers = list(self)[start:]
        yield from zip(layers, [*layers[1:], None], strict=True)

    def _step(self, flow: _Flow, layer: nn.Module, following: nn.Module | None) -> None:
        act = _activation(layer)
        if _border(layer, following):
            flow.border = _border(layer, following)
        elif _is_conv(layer):
            if isinstance(layer, reference.ResizeConv2d):
                flow.x, flow.border = F.interpolate(flow.settle(), scale_factor=2, mode="nearest"), 1
            flow.convolve(layer, following, self.recompute)
        elif _is_norm(layer):
            flow.settle()
            flow.norm = layer
        elif act is not None and flow.norm is not None and flow.act == "none":
            flow.act, flow.slope = act
        elif _untouched(layer, ResidualBlock):
            flow.x = layer(flow.settle(), cancelled=flow.cancelled)
        elif _untouched(layer, UnetBlock):
            self._descend(flow, layer, following)
        else:
            flow.x = layer(flow.settle())

    def _descend(self, flow: _Flow, block: Any, following: nn.Module | None) -> None:
        """Run the next level of a U-Net. Its first LeakyReLU joins the norm before it, and its skip carries the activated value:
        the ReLU after every skip makes that the same function, with the same gradient."""
        act = None if block.outermost or not _untouched(block.model, Chain) else _activation(block.model[0])
        if act is None or act[1] < 0 or not _untouched(following, nn.ReLU):
            flow.x = block(flow.settle(), cancelled=flow.cancelled)
            return
        if flow.norm is not None and flow.act == "none":
            flow.act, flow.slope = act
            x = flow.settle()
        else:
            x = F.leaky_relu(flow.settle(), act[1])
        flow.x = block(x, cancelled=flow.cancelled, activated=True)


class ResidualBlock(reference.ResidualBlock):
    """``reference.ResidualBlock`` as a chain: the sum is part of the last norm's pass."""

    def forward(self, x: Tensor, cancelled: list[Tensor] | None = None) -> Tensor:
        if not _untouched(self.conv_block, Chain):
            return x + self.conv_block(x)
        convs = self._convs(x)
        if convs is None:
            return self.conv_block(x, residual=x, cancelled=cancelled)
        flow = _Flow(x, [] if cancelled is None else cancelled)
        flow.cancelled += [conv.bias for conv in convs if conv.bias is not None]
        if cancelled is None:
            flow.give_zeros()
        first, second = (conv.weight for conv in convs)
        eps: Any = self.conv_block[2].eps
        return residual_block(flow.x, first, second, eps=eps, impl="triton")

    def _convs(self, x: Tensor) -> tuple[Any, Any] | None:
        """Return the two convolutions if the block is the plain one, which is a single operator on ``x``, else None."""
        chain: Any = self.conv_block
        if resolve_impl("ResidualBlock", chain.impl, x) == "reference" or len(chain) != 7 or x.dim() != 4:
            return None
        pad1, conv1, norm1, relu, pad2, conv2, norm2 = chain
        weight, shape = conv1.weight, [x.shape[1], x.shape[1], 3, 3]
        plain = (
            (_border(pad1, conv1), _border(pad2, conv2)) == (1, 1)
            and all(_is_norm(norm) and norm.weight is None and norm.eps == norm1.eps for norm in (norm1, norm2))
            and _activation(relu) == ("relu", 0.0)
            and all(list(conv.weight.shape) == shape and conv.weight.dtype == weight.dtype for conv in (conv1, conv2))
            and all(conv.stride == conv.dilation == (1, 1) and conv.padding == (0, 0) for conv in (conv1, conv2))
            and _compute_dtype(x, weight) == x.dtype
            and backend_of("residual_block", x, x.dtype, 1, shape[0], 3) == "triton"
        )
        return (conv1, conv2) if plain else None


class UnetBlock(reference.UnetBlock):
    """``reference.UnetBlock`` as a chain. ``activated``: x has gone through the block's first LeakyReLU already."""

    def forward(self, x: Tensor, cancelled: list[Tensor] | None = None, activated: bool = False) -> Tensor:
        plain = not _untouched(self.model, Chain)
        y: Tensor = self.model(x) if plain else self.model(x, cancelled=cancelled, start=1 if activated else 0)
        return y if self.outermost else torch.cat([x, y], dim=1)


_CHAINED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: Chain,
    reference.ResidualBlock: ResidualBlock,
    reference.UnetBlock: UnetBlock,
}


def chained(net: nn.Module, impl: str, recompute: bool) -> None:
    """Make the official layers inside ``net`` run as chains, in place: the modules keep their children, names and parameters."""
    for module in net.modules():
        if type(module) in _CHAINED:
            # The structure is the reference's and is built there; only the way that it runs is another.
            module.__class__ = _CHAINED[type(module)]
        if isinstance(module, Chain):
            module.impl, module.recompute = impl, recompute
