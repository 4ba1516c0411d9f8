"""Dataclasses for the convolution operators' arguments, and for the values saved for the backward pass.

Imports only torch.

PyTorch passes arguments to an operator one by one, in the order of its schema. ``of`` builds an object from
them, and ``flat`` returns them in the same order. For a forward operator, these are all arguments except
``required``. For a backward operator, they are the arguments between g and ``needs`` (for norm_conv, between
g and ``required``). Without a norm, ``norm`` is not read, and mean and rstd are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ._convolution import AtenConvolution, Convolution
from ._norm import Norm


@dataclass(frozen=True)
class ReflectConvCall:
    """The arguments of ``reflect_conv_fwd``."""

    x: Tensor
    normed: bool
    norm: Norm
    weight: Sequence[Tensor]
    bias: Sequence[Tensor]
    padding: int
    tanh: bool
    recompute: bool

    @classmethod
    def of(cls, *flat: Any) -> ReflectConvCall:
        x, norm_weight, norm_bias, weight, bias, normed, eps, act, slope, padding, tanh, recompute = flat
        norm = Norm(norm_weight, norm_bias, eps, act, slope)
        return cls(x, normed, norm, weight, bias, padding, tanh, recompute)

    @property
    def keeps_y(self) -> bool:
        return self.normed and not self.recompute


@dataclass(frozen=True)
class ReflectConvSaved:
    """The tensors and options that ``reflect_conv_bwd`` reads.

    ``out`` is the output if a tanh was applied, otherwise empty. ``y`` is the output of the norm with its
    reflected border. It is empty if there is no norm, or if the backward pass recomputes it.
    """

    x: Tensor
    norm: Norm
    mean: Tensor
    rstd: Tensor
    weight: Sequence[Tensor]
    out: Tensor
    y: Tensor
    padding: int

    @classmethod
    def of(cls, *flat: Any) -> ReflectConvSaved:
        x, norm_weight, norm_bias, mean, rstd, weight, out, y, act, slope, padding = flat
        norm = Norm(norm_weight, norm_bias, act=act, slope=slope)
        return cls(x, norm, mean, rstd, weight, out, y, padding)

    def flat(self) -> tuple[Any, ...]:
        norm, tensors = self.norm, (self.mean, self.rstd, self.weight, self.out, self.y)
        return (self.x, norm.weight, norm.bias, *tensors, norm.act, norm.slope, self.padding)

    @property
    def normed(self) -> bool:
        return self.mean.dim() == 2


@dataclass(frozen=True)
class ZeroConvCall:
    """The arguments of ``zero_conv_fwd``."""

    x: Tensor
    weight: Sequence[Tensor]
    bias: Sequence[Tensor]
    conv: Convolution
    normed: bool
    norm: Norm
    recompute: bool

    @classmethod
    def of(cls, *flat: Any) -> ZeroConvCall:
        x, weight, bias, stride, padding, transposed, output_padding, normed, eps, act, slope, recompute = (
            flat
        )
        conv = Convolution(stride, padding, transposed, output_padding)
        return cls(x, weight, bias, conv, normed, Norm(None, None, eps, act, slope), recompute)

    @property
    def keeps_y(self) -> bool:
        return self.normed and not self.recompute


@dataclass(frozen=True)
class ZeroConvSaved:
    """The tensors and options that ``zero_conv_bwd`` reads.

    ``y`` is the output of the norm. It is empty if there is no norm, or if the backward pass recomputes it.
    ``conv`` leaves output_padding at 0, because no gradient needs it.
    """

    x: Tensor
    mean: Tensor
    rstd: Tensor
    weight: Sequence[Tensor]
    y: Tensor
    conv: Convolution
    norm: Norm

    @classmethod
    def of(cls, *flat: Any) -> ZeroConvSaved:
        x, mean, rstd, weight, y, stride, padding, transposed, eps, act, slope = flat
        conv = Convolution(stride, padding, transposed)
        return cls(x, mean, rstd, weight, y, conv, Norm(None, None, eps, act, slope))

    def flat(self) -> tuple[Any, ...]:
        conv, norm = self.conv, self.norm
        options = (conv.stride, conv.padding, conv.transposed, norm.eps, norm.act, norm.slope)
        return (self.x, self.mean, self.rstd, self.weight, self.y, *options)

    @property
    def normed(self) -> bool:
        return self.mean.dim() == 2


@dataclass(frozen=True)
class NormConvCall:
    """The arguments of ``norm_conv_fwd``."""

    x: Tensor
    normed: bool
    norm: Norm
    weight: Tensor
    bias: Tensor | None
    border: int
    recompute: bool
    conv: AtenConvolution

    @classmethod
    def of(cls, *flat: Any) -> NormConvCall:
        x, norm_weight, norm_bias, weight, bias, normed, eps, act, slope, border, recompute, *conv = flat
        norm = Norm(norm_weight, norm_bias, eps, act, slope)
        return cls(x, normed, norm, weight, bias, border, recompute, AtenConvolution(*conv))


@dataclass(frozen=True)
class NormConvSaved:
    """The tensors and options that ``norm_conv_bwd`` reads.

    ``y`` is the input of the convolution. It is empty if the backward pass recomputes it. ``needs`` has three
    entries, which tell whether x, the weight and the bias need a gradient.
    """

    x: Tensor
    norm: Norm
    mean: Tensor
    rstd: Tensor
    weight: Tensor
    y: Tensor
    border: int
    needs: list[bool]
    conv: AtenConvolution

    @classmethod
    def of(cls, *flat: Any) -> NormConvSaved:
        x, norm_weight, norm_bias, mean, rstd, weight, y, act, slope, border, needs, *conv = flat
        norm = Norm(norm_weight, norm_bias, act=act, slope=slope)
        return cls(x, norm, mean, rstd, weight, y, border, needs, AtenConvolution(*conv))

    def flat(self) -> tuple[Any, ...]:
        norm, tensors = self.norm, (self.mean, self.rstd, self.weight, self.y)
        options = (norm.act, norm.slope, self.border, self.needs)
        return (self.x, norm.weight, norm.bias, *tensors, *options, *self.conv.flat())

    @property
    def normed(self) -> bool:
        return self.mean.dim() == 2


@dataclass(frozen=True)
class ResidualBlockSaved:
    """The tensors that ``residual_block_bwd`` reads."""

    x: Tensor
    c1: Tensor
    c2: Tensor
    mean1: Tensor
    rstd1: Tensor
    mean2: Tensor
    rstd2: Tensor
    weight1: Sequence[Tensor]
    weight2: Sequence[Tensor]

    @classmethod
    def of(cls, *flat: Any) -> ResidualBlockSaved:
        return cls(*flat)

    def flat(self) -> tuple[Any, ...]:
        statistics = (self.mean1, self.rstd1, self.mean2, self.rstd2)
        return (self.x, self.c1, self.c2, *statistics, self.weight1, self.weight2)
