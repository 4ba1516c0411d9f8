"""The official networks: generators, discriminators, and the functions that build them by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fastcyclegan.compat.blocks import check_padding
from fastcyclegan.compat.initialise import init_net
from fastcyclegan.compat.norms import NormLayer, get_norm_layer, norm_argument
from fastcyclegan.nn import networks


class ResnetGenerator(networks.Generator):
    """The official ``ResnetGenerator``.

    It maps images [N, input_nc, H, W] to [N, output_nc, H, W] in [-1, 1]; see ``fastcyclegan.Generator``.
    ``norm_layer`` builds a norm for a given number of channels. Raises NotImplementedError if
    ``padding_type`` is not reflect, replicate or zero, and ValueError for counts below 1 (``n_blocks`` may be
    0).
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        ngf: int = 64,
        norm_layer: NormLayer = nn.BatchNorm2d,
        use_dropout: bool = False,
        n_blocks: int = 6,
        padding_type: str = "reflect",
        *,
        impl: str = "auto",
        recompute: bool = True,
    ) -> None:
        check_padding(padding_type)
        norm, affine = norm_argument(norm_layer)
        super().__init__(
            input_nc,
            output_nc,
            ngf,
            n_blocks,
            norm,
            affine,
            use_dropout,
            "transpose",
            impl,
            recompute,
            padding_type,
        )


class UnetGenerator(networks.UnetGenerator):
    """The official ``UnetGenerator``.

    With ``num_downs`` 7, image sides must be multiples of 128 pixels; with 8, of 256. Raises ValueError if
    ``num_downs`` is below 5.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        num_downs: int,
        ngf: int = 64,
        norm_layer: NormLayer = nn.BatchNorm2d,
        use_dropout: bool = False,
        *,
        impl: str = "auto",
        recompute: bool = True,
    ) -> None:
        norm, affine = norm_argument(norm_layer)
        super().__init__(input_nc, output_nc, num_downs, ngf, norm, use_dropout, impl, recompute, affine)


class NLayerDiscriminator(networks.Discriminator):
    """The official ``NLayerDiscriminator`` (PatchGAN).

    It maps images [N, input_nc, H, W] to logits [N, 1, H', W'].
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        n_layers: int = 3,
        norm_layer: NormLayer = nn.BatchNorm2d,
        *,
        impl: str = "auto",
        recompute: bool = True,
    ) -> None:
        norm, affine = norm_argument(norm_layer)
        super().__init__(input_nc, ndf, n_layers, norm, impl, recompute, affine)


class PixelDiscriminator(networks.PixelDiscriminator):
    """The official ``PixelDiscriminator`` (1x1 PatchGAN).

    It maps images [N, input_nc, H, W] to logits [N, 1, H, W].
    """

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        norm_layer: NormLayer = nn.BatchNorm2d,
        *,
        impl: str = "auto",
        recompute: bool = True,
    ) -> None:
        norm, affine = norm_argument(norm_layer)
        super().__init__(input_nc, ndf, norm, impl, recompute, affine)


def define_G(
    input_nc: int,
    output_nc: int,
    ngf: int,
    netG: str,
    norm: str = "batch",
    use_dropout: bool = False,
    init_type: str = "normal",
    init_gain: float = 0.02,
    gpu_ids: Sequence[int] = (),
    *,
    impl: str = "auto",
) -> nn.Module:
    """Build and initialise the generator ``netG``: resnet_9blocks, resnet_6blocks, unet_256 or unet_128.

    Raises NotImplementedError for any other ``netG``, ``norm`` or ``init_type``.
    """
    norm_layer = get_norm_layer(norm)
    blocks, downs = {"resnet_9blocks": 9, "resnet_6blocks": 6}, {"unet_128": 7, "unet_256": 8}
    if netG not in {**blocks, **downs}:
        raise NotImplementedError(f"netG must be one of {', '.join([*blocks, *downs])}, got {netG!r}")
    net: nn.Module
    if netG in blocks:
        net = ResnetGenerator(input_nc, output_nc, ngf, norm_layer, use_dropout, blocks[netG], impl=impl)
    else:
        net = UnetGenerator(input_nc, output_nc, downs[netG], ngf, norm_layer, use_dropout, impl=impl)
    return init_net(net, init_type, init_gain, gpu_ids)


def define_D(
    input_nc: int,
    ndf: int,
    netD: str,
    n_layers_D: int = 3,
    norm: str = "batch",
    init_type: str = "normal",
    init_gain: float = 0.02,
    gpu_ids: Sequence[int] = (),
    *,
    impl: str = "auto",
) -> nn.Module:
    """Build and initialise the discriminator ``netD``: basic, n_layers (with ``n_layers_D``) or pixel.

    Raises NotImplementedError for any other ``netD``, ``norm`` or ``init_type``.
    """
    norm_layer = get_norm_layer(norm)
    if netD not in ("basic", "n_layers", "pixel"):
        raise NotImplementedError(f"netD must be one of basic, n_layers, pixel, got {netD!r}")
    net: nn.Module
    if netD == "pixel":
        net = PixelDiscriminator(input_nc, ndf, norm_layer, impl=impl)
    else:
        n_layers = n_layers_D if netD == "n_layers" else 3
        net = NLayerDiscriminator(input_nc, ndf, n_layers, norm_layer, impl=impl)
    return init_net(net, init_type, init_gain, gpu_ids)
