"""A tensor on its way through a chain of layers, with the operations that are still pending on it.

A norm, an activation or a reflection padding is deferred so that the next convolution can be fused with it.

P networks of one architecture can run as one. The tensor then contains the images of all networks, N / P for
each, in the order of the networks. Each position of a chain is then a tuple with one layer of each network.
``chains.py`` walks the chains; ``engine/batching.py`` decides which networks can run together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan.kernels import instance_norm
from fastcyclegan.kernels._convolution import AtenConvolution
from fastcyclegan.kernels._norm import Norm
from fastcyclegan.kernels._weight_gradients import each_weight, is_accumulating
from fastcyclegan.kernels.backend_table import backend_of, measured
from fastcyclegan.kernels.dispatch import CPP_DTYPES, Impl, is_autocast_on
from fastcyclegan.kernels.norm_conv import norm_conv
from fastcyclegan.kernels.reflect_conv import reflect_conv
from fastcyclegan.kernels.zero_conv import serves, zero_conv
from fastcyclegan.nn.layer_checks import compute_dtype, is_norm, untouched
from fastcyclegan.nn.layers import FloatTanh

Layers = tuple[Any, ...]
"""The layers of P networks at one position. The layers are alike, so it is enough to inspect the first."""


class _ZeroGradient(torch.autograd.Function):
    """The identity on x that gives all other arguments a gradient of zeros, cut from one shared buffer."""

    @staticmethod
    def forward(x: Tensor, *cancelled: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.cancelled = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        biases = ctx.cancelled
        if is_accumulating() and all(b.is_leaf and b.grad is not None for b in biases):
            # Adding zeros to existing gradients would not change them.
            return grad, *(None for _ in biases)
        sizes = [b.numel() for b in biases]
        zeros = grad.new_zeros(sum(sizes), dtype=biases[0].dtype).split(sizes)
        return grad, *(z.view(b.shape) for z, b in zip(zeros, biases, strict=True))


def _supports_reflection(conv: Any, x: Tensor, dtype: torch.dtype, count: int) -> bool:
    """Return whether our kernels compute ``conv`` in ``dtype`` on the reflection-padded x.

    They require stride 1, no padding by the convolution itself, an odd square kernel, and no groups.
    """
    k = conv.weight.shape[2]
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (k, k) or k % 2 == 0 or conv.groups != 1:
        return False
    if (conv.stride, conv.dilation, conv.padding) != ((1, 1), (1, 1), (0, 0)):
        return False
    return backend_of("reflect_conv", x, dtype, count, conv.weight.shape[0], k) == "triton"


def _plain_conv(x: Tensor, conv: Any, bias: Tensor | None) -> Tensor:
    if type(conv) is nn.ConvTranspose2d:
        sizes: Any = (conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
        return F.conv_transpose2d(x, conv.weight, bias, *sizes)
    return F.conv2d(x, conv.weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _tanh_after(following: Layers | None) -> nn.Module | None:
    """Return the tanh among the layers that follow a convolution at once, or None."""
    if following is not None and untouched(following[0], FloatTanh):
        layer: nn.Module = following[0]
        return layer
    return None


def _sizes_of(conv: Any) -> AtenConvolution:
    sides = (list(conv.stride), list(conv.padding), list(conv.dilation))
    transposed = isinstance(conv, nn.ConvTranspose2d)
    return AtenConvolution(*sides, transposed, list(conv.output_padding), conv.groups)


@dataclass
class Deferred:
    """A tensor x and the operations still pending on it: norm, activation and padding, in this order.

    ``impl`` selects whether our kernels or PyTorch's operators compute them. If ``required`` is true,
    KernelError is raised when a Triton kernel fails, and the C++ kernels compute all that they can. If it is
    false, PyTorch computes an operator whose kernel fails or, on a CPU, is not faster.
    """

    x: Tensor
    cancelled: list[Tensor]
    impl: Impl = "triton"
    norm: nn.Module | None = None
    act: str = "none"
    slope: float = 0.0
    border: int = 0
    covered: nn.Module | None = None  # a layer already computed together with the one before it
    required: bool = False
    bordered: bool = False  # whether x already has the padding of the next convolution
    owned: Tensor | None = None  # what may be changed in place, if it is still x: no gradient reads it

    @property
    def public_impl(self) -> str:
        """The ``impl`` to pass to the public operators."""
        if self.impl != "reference" and not self.required:
            return "auto"
        return self.impl

    def flush(self, residual: Tensor | None = None) -> Tensor:
        """Apply all pending operations, add ``residual``, and return x."""
        if self.norm is not None and (residual is None or residual.dtype == self.x.dtype):
            self._normalise(self.norm, residual)
            residual = None
        elif self.norm is not None:
            self._normalise(self.norm, None)
        if self.border:
            self.x, self.border = F.pad(self.x, (self.border,) * 4, mode="reflect"), 0
        if residual is not None:
            self.x = residual + self.x
        return self.x

    def _normalise(self, norm: Any, residual: Tensor | None) -> None:
        options: dict[str, Any] = {
            "eps": norm.eps,
            "act": self.act,
            "slope": self.slope,
            "impl": self.public_impl,
        }
        self.x = instance_norm(self.x, norm.weight, norm.bias, residual=residual, **options)
        self._clear_norm()

    def _clear_norm(self) -> None:
        """Record that the norm and the activation have been applied to x."""
        self.norm, self.act = None, "none"

    def can_activate(self, act: tuple[str, float]) -> bool:
        """Return whether ``activate`` needs no pass of its own, or one in place."""
        if self.norm is not None:
            return self.act == "none"
        return self.x is self.owned and self.border == 0 and act[1] >= 0

    def activate(self, act: tuple[str, float]) -> None:
        """Apply an activation, a name and a slope of at least 0, or defer it to a pending norm."""
        if self.norm is not None and self.act == "none":
            self.act, self.slope = act
            return
        x = self.flush()
        in_place = x is self.owned
        if act[0] == "relu":
            self.x = F.relu(x, in_place)
        else:
            self.x = F.leaky_relu(x, act[1], in_place)

    def call_layers(self, layers: Layers) -> None:
        """Apply all pending operations, then replace x with the output of ``layers``, called as modules."""
        x = self.flush()
        # A buffer, such as a filter, can differ between the networks as a weight does.
        has_weights = any(True for _ in (*layers[0].parameters(), *layers[0].buffers()))
        if len(layers) > 1 and has_weights:
            self.x = torch.cat([layer(part) for part, layer in each_weight(x, layers)])
        else:
            self.x = layers[0](x)
        # Its gradient is computed from its input. Others, such as hooks, could keep a result.
        self.owned = self.x if untouched(layers[0], nn.BatchNorm2d) else None

    def attach_zero_gradients(self) -> None:
        """Attach to x a gradient of zeros for the biases that have been left out so far."""
        biases = [b for b in self.cancelled if b.requires_grad]
        self.cancelled.clear()
        # A trace that is saved cannot contain a function of ours: there, these biases get no gradient.
        if biases and torch.is_grad_enabled() and not torch.jit.is_tracing():
            self.x = _ZeroGradient.apply(self.x, *biases)

    # --- Convolutions ---------------------------------------------------------------------------------------

    def convolve(self, convs: Layers, following: Layers | None, recompute: bool) -> None:
        """Replace x with its convolution, fused with the pending operations and with a tanh that follows."""
        conv, biases = convs[0], [conv.bias for conv in convs if conv.bias is not None]
        if following is not None and is_norm(following[0]):
            self.cancelled += biases
            biases = []
        dtype = compute_dtype(self.x, conv.weight)
        # Without autocast, an image of another dtype is an error, as in PyTorch.
        fits = self.x.dtype == dtype or is_autocast_on(self.x)
        # Weights in another 16-bit dtype are left to PyTorch, which casts them under autocast.
        fits = fits and conv.weight.dtype in (dtype, torch.float32)
        if self.impl == "cpp" and fits and dtype in CPP_DTYPES:
            self._cast(dtype)
            self._convolve_on_cpu(convs, biases, following, recompute)
            return
        use_kernels = self.impl == "triton" and fits
        padded = self.border or self.bordered
        if use_kernels and padded and _supports_reflection(conv, self.x, dtype, len(convs)):
            self._cast(dtype)
            self._reflect(convs, biases, following, recompute)
        elif use_kernels and self.border == 0 and self._can_zero_pad(convs, dtype):
            self._cast(dtype)
            self._zero_pad(convs, biases, recompute)
        else:
            self._convolve_by_pytorch(convs, biases, dtype, recompute)

    def _cast(self, dtype: torch.dtype) -> None:
        """Convert x to ``dtype`` after applying a pending norm; a pending padding stays pending."""
        if self.x.dtype == dtype:
            return
        border, self.border = self.border, 0
        self.x = self.flush().to(dtype)
        self.border = border

    def _convolve_by_pytorch(
        self, convs: Layers, biases: list[Tensor], dtype: torch.dtype, recompute: bool
    ) -> None:
        """Replace x with its convolution computed by PyTorch, after the pending operations."""
        # For few channels, such as an image's three, a separate pass of ours is not worth it: PyTorch pads.
        cheap = self.norm is None and (self.border == 0 or self.x.shape[1] < 8)
        if self.impl != "triton" or self.x.dtype != dtype or cheap:
            self.flush()
        x = self.x.contiguous(memory_format=torch.channels_last)
        each_bias = biases if biases else [None] * len(convs)
        if len(convs) == 1:
            self.x = self._convolved(x, convs[0], each_bias[0], recompute)
        else:
            parts = each_weight(x, convs, each_bias)
            self.x = torch.cat([self._convolved(y, conv, bias, recompute) for y, conv, bias in parts])
        self._clear_norm()
        self.border = 0

    def _convolved(self, x: Tensor, conv: Any, bias: Tensor | None, recompute: bool) -> Tensor:
        """Return one network's convolution of x, computed by PyTorch after the pending operations."""
        if self.norm is None and self.border == 0:
            return _plain_conv(x, conv, bias)
        transposed = isinstance(conv, nn.ConvTranspose2d)
        sizes = (conv.stride, conv.padding, conv.dilation, transposed, conv.output_padding, conv.groups)
        options: dict[str, Any] = {"recompute": recompute, "required": self.required, **self._norm_options()}
        return norm_conv(x, conv.weight, bias, sizes, border=self.border, **options)

    def _convolve_on_cpu(
        self, convs: Layers, biases: list[Tensor], following: Layers | None, recompute: bool
    ) -> None:
        """Replace x with its convolution, computed on a CPU together with the pending operations."""
        from fastcyclegan.kernels.cpu.calls import norm_conv as norm_conv_on_cpu

        tanh = _tanh_after(following)
        norm: Any = self.norm
        options: dict[str, Any] = {"border": self.border, "required": self.required, "recompute": recompute}
        options["float_out"] = tanh is not None
        if norm is not None:
            options["norm"] = Norm(norm.weight, norm.bias, norm.eps, self.act, self.slope)
        sizes = _sizes_of(convs[0])
        parts = each_weight(self.x, convs, biases if biases else [None] * len(convs))
        results = [norm_conv_on_cpu(x, conv.weight, bias, sizes, **options) for x, conv, bias in parts]
        self.x = results[0] if len(results) == 1 else torch.cat(results)
        self._clear_norm()
        self.border = 0
        self._apply_tanh(tanh, convs)

    def _apply_tanh(self, tanh: nn.Module | None, convs: Layers) -> None:
        """Apply a tanh in fp32, if there is one, and give x the dtype that ``FloatTanh`` would give it."""
        if tanh is not None:
            self.x = torch.tanh(self.x)
            if not is_autocast_on(self.x):
                self.x = self.x.to(convs[0].weight.dtype)
            self.covered = tanh

    def _can_zero_pad(self, convs: Layers, dtype: torch.dtype) -> bool:
        """Return whether our kernels should compute zero-padded ``convs`` in ``dtype``, fused with the norm.

        For one network, our kernels are used only if they were measured to be faster than cuDNN. For several
        networks, they are always used, because they need one launch instead of one per network and a copy.
        """
        conv, transposed = convs[0], isinstance(convs[0], nn.ConvTranspose2d)
        square = all(len(set(sizes)) == 1 for sizes in (conv.stride, conv.padding, conv.output_padding))
        if not square or conv.dilation != (1, 1) or conv.groups != 1:
            return False
        if self.norm is not None and self.norm.weight is not None:
            return False
        sizes = (conv.stride[0], conv.padding[0], transposed, conv.output_padding[0])
        if not serves(self.x.shape[1], conv.weight.shape, *sizes):
            return False
        if len(convs) > 1:
            return True
        times = measured("zero_conv", self.x, dtype, 1, conv.out_channels, conv.kernel_size[0])
        return bool(times) and times["triton"] < times["cudnn"]

    def _zero_pad(self, convs: Layers, biases: list[Tensor], recompute: bool) -> None:
        """Replace x with its convolution computed by our kernels, fused with any pending norm."""
        conv, norm = convs[0], self.norm
        options: dict[str, Any] = {"recompute": recompute, "required": self.required}
        options |= {"stride": conv.stride[0], "padding": conv.padding[0]}
        if isinstance(conv, nn.ConvTranspose2d):
            options |= {"transposed": True, "output_padding": conv.output_padding[0]}
        if norm is not None:
            options |= {"norm": True, "eps": norm.eps, "act": self.act, "slope": self.slope}
        self.x = zero_conv(self.x, [conv.weight for conv in convs], biases, **options)
        self._clear_norm()

    def _reflect(
        self, convs: Layers, biases: list[Tensor], following: Layers | None, recompute: bool
    ) -> None:
        """Replace x with its convolution, computed by our kernels together with the pending operations."""
        tanh = _tanh_after(following)
        weights = [conv.weight for conv in convs]
        options: dict[str, Any] = {"recompute": recompute, "required": self.required, **self._norm_options()}
        self.x = reflect_conv(self.x, weights, biases, padding=self.border, tanh=tanh is not None, **options)
        if tanh is not None and not is_autocast_on(self.x):
            self.x = self.x.to(convs[0].weight.dtype)
        self._clear_norm()
        self.border, self.covered = 0, tanh

    def _norm_options(self) -> dict[str, Any]:
        norm = self.norm
        if norm is None:
            return {"norm": False}
        affine = {"norm_weight": norm.weight, "norm_bias": norm.bias}
        return {"norm": True, **affine, "eps": norm.eps, "act": self.act, "slope": self.slope}
