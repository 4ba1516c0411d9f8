"""The constructors of the official code (pytorch-CycleGAN-and-pix2pix, models/networks.py and
util/image_pool.py) by their signatures.

One line moves a project: ``from fastcyclegan.compat import define_G, define_D, GANLoss, ImagePool``.
Arguments, defaults, state_dict keys and results are the official ones; what computes them is ours. ``impl``
and ``recompute`` are as in ``fastcyclegan.Generator``. ReLUs are not in place, so who collects the layers'
results sees those of the norms before them as they are.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan import reference
from fastcyclegan.nn import networks

NormLayer = Callable[[int], nn.Module]


def _ours(norm_layer: NormLayer) -> tuple[reference.Norm, bool]:
    """Return ``norm_layer`` as our networks take it, by name where it has one, and whether it is an affine
    instance norm.
    """
    kind = getattr(norm_layer, "func", norm_layer)
    options: dict[str, Any] = {}
    has_other_options = False
    if isinstance(norm_layer, functools.partial):
        options = dict(norm_layer.keywords)
        has_other_options = bool(norm_layer.args) or not options.keys() <= {"affine", "track_running_stats"}
    if norm_layer is _identity:
        return "none", False
    if has_other_options:
        return norm_layer, False
    if kind is nn.InstanceNorm2d and not options.get("track_running_stats"):
        return "instance", bool(options.get("affine"))
    if kind is nn.BatchNorm2d and all(options.values()):
        return "batch", False
    return norm_layer, False


def _identity(channels: int) -> nn.Module:
    return nn.Identity()


class ResnetGenerator(networks.Generator):
    """The official ``ResnetGenerator``: [N, input_nc, H, W] to [N, output_nc, H, W] in [-1, 1]; see
    ``fastcyclegan.Generator``.

    ``norm_layer`` makes a norm of a number of channels. Raises ValueError for an unknown ``padding_type``
    (reflect, replicate, zero) and for counts below 1 (``n_blocks`` may be 0).
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
        norm, affine = _ours(norm_layer)
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
    """The official ``UnetGenerator``; ``num_downs`` 7 is for multiples of 128 pixels, 8 for those of 256.
    Raises ValueError below 5.
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
        norm, affine = _ours(norm_layer)
        super().__init__(input_nc, output_nc, num_downs, ngf, norm, use_dropout, impl, recompute, affine)


class NLayerDiscriminator(networks.Discriminator):
    """The official ``NLayerDiscriminator``, the PatchGAN: [N, input_nc, H, W] to [N, 1, H', W'] logits."""

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
        norm, affine = _ours(norm_layer)
        super().__init__(input_nc, ndf, n_layers, norm, impl, recompute, affine)


class PixelDiscriminator(networks.PixelDiscriminator):
    """The official ``PixelDiscriminator``, the 1x1 PatchGAN: [N, input_nc, H, W] to [N, 1, H, W] logits."""

    def __init__(
        self,
        input_nc: int,
        ndf: int = 64,
        norm_layer: NormLayer = nn.BatchNorm2d,
        *,
        impl: str = "auto",
        recompute: bool = True,
    ) -> None:
        norm, affine = _ours(norm_layer)
        super().__init__(input_nc, ndf, norm, impl, recompute, affine)


def get_norm_layer(norm_type: str = "instance") -> NormLayer:
    """Return what makes the norm called ``norm_type``: batch, syncbatch, instance or none. Raises
    NotImplementedError for others.
    """
    layers: dict[str, NormLayer] = {
        "batch": functools.partial(nn.BatchNorm2d, affine=True, track_running_stats=True),
        "syncbatch": functools.partial(nn.SyncBatchNorm, affine=True, track_running_stats=True),
        "instance": functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False),
        "none": _identity,
    }
    if norm_type not in layers:
        raise NotImplementedError(f"norm must be one of {', '.join(layers)}, got {norm_type!r}")
    return layers[norm_type]


def _started(net: nn.Module, init_type: str, init_gain: float, gpu_ids: Sequence[int]) -> nn.Module:
    """Return ``net`` initialised and, as in the official code, in a DataParallel over ``gpu_ids`` if there
    are any.
    """
    if init_type not in reference.INIT_TYPES:
        raise NotImplementedError(
            f"init_type must be one of {', '.join(reference.INIT_TYPES)}, got {init_type!r}"
        )
    if gpu_ids:
        net = nn.DataParallel(net.to(torch.device("cuda", gpu_ids[0])), list(gpu_ids))
    return reference.init_weights(net, init_type, init_gain)


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
    """Return the generator ``netG``, initialised: resnet_9blocks, resnet_6blocks, unet_256 or unet_128.

    Raises NotImplementedError for another ``netG``, ``norm`` or ``init_type``.
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
    return _started(net, init_type, init_gain, gpu_ids)


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
    """Return the discriminator ``netD``, initialised: basic, n_layers (with ``n_layers_D``) or pixel.

    Raises NotImplementedError for another ``netD``, ``norm`` or ``init_type``.
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
    return _started(net, init_type, init_gain, gpu_ids)


class GANLoss(nn.Module):
    """The official ``GANLoss``: of logits and whether they should say "real", a scalar. lsgan, vanilla or
    wgangp (without its penalty).
    """

    real_label: Tensor
    fake_label: Tensor

    def __init__(self, gan_mode: str, target_real_label: float = 1.0, target_fake_label: float = 0.0) -> None:
        super().__init__()
        if gan_mode not in reference.GAN_MODES:
            raise NotImplementedError(
                f"gan_mode must be one of {', '.join(reference.GAN_MODES)}, got {gan_mode!r}"
            )
        self.register_buffer("real_label", torch.tensor(target_real_label))
        self.register_buffer("fake_label", torch.tensor(target_fake_label))
        self.gan_mode = gan_mode

    def get_target_tensor(self, prediction: Tensor, target_is_real: bool) -> Tensor:
        """Return the label, as large as ``prediction``."""
        label = self.real_label if target_is_real else self.fake_label
        return label.expand_as(prediction)

    def forward(self, prediction: Tensor, target_is_real: bool) -> Tensor:
        if self.gan_mode == "wgangp":
            mean = prediction.mean()
            return -mean if target_is_real else mean
        target = self.get_target_tensor(prediction, target_is_real)
        if self.gan_mode == "lsgan":
            return F.mse_loss(prediction, target)
        return F.binary_cross_entropy_with_logits(prediction, target)


class ImagePool:
    """The official ``ImagePool``: the replay history of ``pool_size`` images. Chance comes from Python's
    ``random``, as there.
    """

    def __init__(self, pool_size: int) -> None:
        self.pool_size = pool_size
        self._pool = reference.ReplayPool(pool_size)

    @property
    def images(self) -> list[Tensor]:
        """The images that are held, [1, C, H, W] each."""
        return [image[None] for image in self._pool.images]

    @property
    def num_imgs(self) -> int:
        return len(self._pool.images)

    def query(self, images: Tensor) -> Tensor:
        """Return images [N, C, H, W] for ``images`` [N, C, H, W]: new ones, or stored ones whose place they
        take. Detached.
        """
        if self.pool_size == 0:
            return images
        shown = []
        for image in images:
            shown.append(self._pool.query(image[None], [self._draw()]))
        return torch.cat(shown)

    def _draw(self) -> tuple[float, float]:
        """Draw as the official code does, nothing while the pool is filling, and return it as (swap,
        place)."""
        if self.num_imgs < self.pool_size or random.uniform(0, 1) <= 0.5:
            return 1.0, 0.0
        return 0.0, (random.randint(0, self.pool_size - 1) + 0.5) / self.pool_size
