"""The official building blocks of the generators, for projects that compose networks of their own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.compat.norms import NormLayer, norm_argument
from fastcyclegan.kernels.dispatch import check_impl
from fastcyclegan.nn import chains
from fastcyclegan.nn.networks import in_any_layout


def check_padding(padding_type: str) -> None:
    """Raise NotImplementedError unless ``padding_type`` is reflect, replicate or zero."""
    if padding_type not in reference.PADDING_TYPES:
        raise NotImplementedError(
            f"padding_type must be one of {', '.join(reference.PADDING_TYPES)}, got {padding_type!r}"
        )


class ResnetBlock(chains.ResidualBlock):
    """The official ``ResnetBlock``: x + conv_block(x) for x [N, dim, H, W].

    ``norm_layer`` builds a norm for a given number of channels, and the convolutions have a bias if
    ``use_bias``. Raises NotImplementedError if ``padding_type`` is not reflect, replicate or zero.
    """

    def __init__(
        self,
        dim: int,
        padding_type: str,
        norm_layer: NormLayer,
        use_dropout: bool,
        use_bias: bool,
        *,
        impl: str = "auto",
        recompute: bool = True,
    ) -> None:
        check_padding(padding_type)
        norm, affine = norm_argument(norm_layer)
        super().__init__(dim, in_any_layout(norm, affine), affine, use_dropout, padding_type, use_bias)
        _set_up(self.conv_block, impl, recompute)


class UnetSkipConnectionBlock(chains.UnetBlock):
    """The official ``UnetSkipConnectionBlock``: one level of a U-Net, around the level ``submodule``.

    It maps x [N, input_nc, H, W] (by default outer_nc channels) to [N, input_nc + outer_nc, H, W], where the
    first channels are the skip, LeakyReLU(x). The outermost level has no skip and ends with a tanh, and the
    innermost has no ``submodule``. As in the official code, the first LeakyReLU changes what the skip
    carries; unlike there, x itself stays as it is. Raises ValueError if a level that is not the innermost has
    no ``submodule``.
    """

    def __init__(
        self,
        outer_nc: int,
        inner_nc: int,
        input_nc: int | None = None,
        submodule: nn.Module | None = None,
        outermost: bool = False,
        innermost: bool = False,
        norm_layer: NormLayer = nn.BatchNorm2d,
        use_dropout: bool = False,
        *,
        impl: str = "auto",
        recompute: bool = True,
    ) -> None:
        below = submodule if outermost or not innermost else None
        if below is None and (outermost or not innermost):
            raise ValueError("UnetSkipConnectionBlock: submodule is missing, and only innermost has none")
        norm, affine = norm_argument(norm_layer)
        super().__init__(
            outer_nc,
            inner_nc,
            below,
            in_any_layout(norm, affine),
            affine,
            input_nc=input_nc,
            outermost=outermost,
            dropout=use_dropout,
        )
        _set_up(self.model, impl, recompute)

    def skip(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2)


def _set_up(chain: nn.Module, impl: str, recompute: bool) -> None:
    """Set the implementation of a block's own chain. A block inside it keeps its own."""
    check_impl(impl)
    chain.impl, chain.recompute = impl, recompute  # type: ignore[assignment]
