"""The networks that users build: the reference networks with a choice of implementation.

``build_generator`` and ``build_discriminator`` select them by the official names.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.kernels.dispatch import check_impl, resolve_impl
from fastcyclegan.nn.chains import Chain, ResidualBlock, UnetBlock
from fastcyclegan.nn.fast_method import Fast
from fastcyclegan.nn.layer_checks import require_images
from fastcyclegan.nn.layers import FloatTanh
from fastcyclegan.nn.pretrained import Pretrained
from fastcyclegan.reference import Norm
from fastcyclegan.settings.networks import ModelConfig

Impl = Literal["auto", "cpp", "triton", "reference"]


def set_impl(net: nn.Module, impl: str) -> None:
    """Set the implementation that computes ``net``. Raises ValueError for an unknown ``impl``."""
    check_impl(impl)
    net.impl = impl  # type: ignore[assignment]
    for chain in _chains(net):
        chain.impl = impl


def _chains(net: nn.Module) -> list[Chain]:
    return [module for module in net.modules() if isinstance(module, Chain)]


def set_up(net: nn.Module, impl: str, recompute: bool) -> None:
    """Set the implementation that computes ``net``, and what its chains keep; see ``Generator``."""
    set_impl(net, impl)
    for chain in _chains(net):
        chain.recompute = recompute


@contextlib.contextmanager
def twice_differentiable(net: object) -> Iterator[None]:
    """Let PyTorch's operators compute those parts of ``net`` for which "auto" could select Triton's kernels.

    The kernels cannot be differentiated twice. If ``impl`` demands them, they still compute the network.
    """
    chains = _chains(net) if isinstance(net, nn.Module) else []
    chosen = [chain for chain in chains if chain.impl == "auto"]
    for chain in chosen:
        chain.impl = "reference"
    try:
        yield
    finally:
        for chain in chosen:
            chain.impl = "auto"


def computed_by(net: nn.Module) -> str:
    """Return the implementation that computes ``net`` on its current device: "triton", "cpp" or "reference".

    If its ``impl`` does not support its parameters, or it has no parameters, return a text that explains
    this.
    """
    impl, parameter = getattr(net, "impl", "reference"), next(net.parameters(), None)
    if parameter is None:
        return "no parameters"
    try:
        return resolve_impl(type(net).__name__, impl, parameter)
    except (ValueError, TypeError):
        return f"does not support {str(parameter.dtype).removeprefix('torch.')} on {parameter.device}"


def in_any_layout(norm: Norm, affine: bool) -> Norm:
    """Return ``norm`` with torch's InstanceNorm2d replaced by ``reference.InstanceNorm2d``.

    The gradient of the replacement is correct in every memory layout.
    """
    if isinstance(norm, str) or affine:
        return norm
    if norm is nn.InstanceNorm2d:
        return reference.InstanceNorm2d
    if isinstance(norm, functools.partial) and norm.func is nn.InstanceNorm2d:
        return functools.partial(reference.InstanceNorm2d, *norm.args, **norm.keywords)
    return functools.partial(_build_in_any_layout, norm)


def _build_in_any_layout(norm: Callable[[int], nn.Module], channels: int) -> nn.Module:
    layer = norm(channels)
    if type(layer) is not nn.InstanceNorm2d:
        return layer
    options = (layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    replacement = reference.InstanceNorm2d(*options)  # type: ignore[arg-type]
    replacement.load_state_dict(layer.state_dict())
    return replacement


class Generator(reference.Generator, Pretrained, Fast):
    """The ResNet generator of CycleGAN, a drop-in for the official ``ResnetGenerator``.

    It has the same state_dict keys, and maps images [N, input_nc, H, W] in [-1, 1] to [N, output_nc, H, W] in
    [-1, 1]. H and W must be multiples of 4 and at least 8. The output is fp32 under autocast; otherwise it
    has the dtype of the weights.

    ``impl`` selects the implementation: "reference" uses PyTorch's own operators, "triton" our kernels for
    NVIDIA GPUs and "cpp" those for CPUs; "auto" uses the kernels on devices that they support, and on a CPU
    those that are faster than PyTorch's operators. With ``recompute=True``, only the convolutions' outputs
    are kept for the backward, which computes their normalised inputs again. This takes half the memory, but
    each normalised input is written once more. With ``recompute=False``, both are kept, except that the
    Triton kernels always recompute those of residual blocks. ``norm`` is "instance", "batch", "none", or a
    callable that builds a norm for a number of channels, such as nn.BatchNorm2d. ``downsample`` and
    ``upsample`` "antialias" are those of CUT, whose keys the network then has.

    Raises ValueError for an unknown norm, upsample, downsample, padding_type or impl, and when called with
    impl="triton" or "cpp" on a device that these kernels do not support.
    """

    keeps_arguments = True
    sequential = Chain
    residual_block = ResidualBlock
    tanh = FloatTanh

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        n_blocks: int = 9,
        norm: Norm = "instance",
        affine: bool = False,
        use_dropout: bool = False,
        upsample: str = "transpose",
        impl: str = "auto",
        recompute: bool = True,
        padding_type: str = "reflect",
        downsample: str = "stride",
    ) -> None:
        safe_norm = in_any_layout(norm, affine)
        options = {"use_dropout": use_dropout, "upsample": upsample, "padding_type": padding_type}
        options |= {"downsample": downsample}
        super().__init__(input_nc, output_nc, ngf, n_blocks, safe_norm, affine, **options)  # type: ignore[arg-type]
        set_up(self, impl, recompute)
        sizes = {"input_nc": input_nc, "output_nc": output_nc, "ngf": ngf, "n_blocks": n_blocks}
        self.arguments = {**sizes, "norm": norm, "affine": affine, **options}

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            require_images(self, self.model, x)
        return self.model(x)

    def extra_repr(self) -> str:
        return f"impl={self.impl} ({computed_by(self)})"


class UnetGenerator(reference.UnetGenerator, Pretrained, Fast):
    """The pix2pix U-Net, a drop-in for the official ``UnetGenerator``.

    See ``reference.UnetGenerator`` for its arguments, and ``Generator`` for ``impl``.
    """

    keeps_arguments = True
    unet_block = UnetBlock

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        num_downs: int = 8,
        ngf: int = 64,
        norm: Norm = "instance",
        use_dropout: bool = False,
        impl: str = "auto",
        recompute: bool = True,
        affine: bool = False,
    ) -> None:
        safe_norm = in_any_layout(norm, affine)
        super().__init__(input_nc, output_nc, num_downs, ngf, safe_norm, use_dropout, affine)
        set_up(self, impl, recompute)
        sizes = {"input_nc": input_nc, "output_nc": output_nc, "num_downs": num_downs, "ngf": ngf}
        self.arguments = {**sizes, "norm": norm, "use_dropout": use_dropout, "affine": affine}

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            require_images(self, self.model.model, x)
        return self.model(x)

    def extra_repr(self) -> str:
        return f"impl={self.impl} ({computed_by(self)})"


class Discriminator(reference.Discriminator):
    """The PatchGAN, a drop-in for the official ``NLayerDiscriminator``.

    See ``reference.Discriminator`` for its arguments, and ``Generator`` for ``impl``.
    """

    sequential = Chain

    def __init__(
        self,
        input_nc: int = 3,
        ndf: int = 64,
        n_layers: int = 3,
        norm: Norm = "instance",
        impl: str = "auto",
        recompute: bool = True,
        affine: bool = False,
    ) -> None:
        super().__init__(input_nc, ndf, n_layers, in_any_layout(norm, affine), affine)
        set_up(self, impl, recompute)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            require_images(self, self.model, x)
        return self.model(x)

    def extra_repr(self) -> str:
        return f"impl={self.impl} ({computed_by(self)})"


class PixelDiscriminator(reference.PixelDiscriminator):
    """The 1x1 PatchGAN, a drop-in for the official ``PixelDiscriminator``."""

    sequential = Chain

    def __init__(
        self,
        input_nc: int = 3,
        ndf: int = 64,
        norm: Norm = "instance",
        impl: str = "auto",
        recompute: bool = True,
        affine: bool = False,
    ) -> None:
        super().__init__(input_nc, ndf, in_any_layout(norm, affine), affine)
        set_up(self, impl, recompute)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            require_images(self, self.net, x)
        return self.net(x)

    def extra_repr(self) -> str:
        return f"impl={self.impl} ({computed_by(self)})"


def build_generator(config: ModelConfig, input_nc: int, output_nc: int) -> nn.Module:
    """Build the generator that ``config.netG`` selects, from ``input_nc`` to ``output_nc`` channels.

    The official initialisation (``reference.init_weights``) is not applied.
    """
    common: dict[str, Any] = {"ngf": config.ngf, "norm": config.norm, "affine": config.affine}
    common |= {"use_dropout": config.has_dropout, "impl": config.impl}
    if config.levels is not None:
        return UnetGenerator(input_nc, output_nc, num_downs=config.levels, **common)
    n_blocks = int(config.netG.removeprefix("resnet_").removesuffix("blocks"))
    common |= {"upsample": config.upsample, "downsample": config.downsample}
    return Generator(input_nc, output_nc, n_blocks=n_blocks, **common)


def build_discriminator(config: ModelConfig, input_nc: int) -> nn.Module:
    """Build the discriminator that ``config.netD`` selects, for images with ``input_nc`` channels.

    The official initialisation (``reference.init_weights``) is not applied.
    """
    if config.netD == "pixel":
        return PixelDiscriminator(input_nc, config.ndf, config.norm, config.impl, affine=config.affine)
    n_layers = config.n_layers_D if config.netD == "n_layers" else 3
    return Discriminator(input_nc, config.ndf, n_layers, config.norm, config.impl, affine=config.affine)


OURS = (Generator, UnetGenerator, Discriminator, PixelDiscriminator)


def is_ours(net: nn.Module) -> bool:
    """Return whether ``net`` is one of our networks, or a subclass that keeps its forward."""
    return isinstance(net, OURS) and type(net).forward in {kind.forward for kind in OURS}
