"""Drop-in replacements for the constructors of the official code, pytorch-CycleGAN-and-pix2pix.

They cover models/networks.py and util/image_pool.py, so a project can switch by changing one import:
``from fastcyclegan.compat import define_G, define_D, GANLoss, ImagePool``. Arguments, defaults, state_dict
keys and results are the same as in the official code; only the implementation differs. ``impl`` and
``recompute`` work as in ``fastcyclegan.Generator``. Unlike the official ReLUs, those here do not work in
place, so code that collects the outputs of layers sees the output of each norm unchanged.
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


def _norm_argument(norm_layer: NormLayer) -> tuple[reference.Norm, bool]:
    """Convert ``norm_layer`` to the arguments ``norm`` and ``affine`` of our networks.

    ``norm`` is a name, such as "instance", if our networks have a name for this kind of norm. Otherwise, it
    is ``norm_layer`` itself.
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
    """The official ``ResnetGenerator``.

    It maps images [N, input_nc, H, W] to [N, output_nc, H, W] in [-1, 1]; see ``fastcyclegan.Generator``.
    ``norm_layer`` builds a norm for a given number of channels. Raises ValueError if ``padding_type`` is not
    reflect, replicate or zero, and for counts below 1 (``n_blocks`` may be 0).
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
        norm, affine = _norm_argument(norm_layer)
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
        norm, affine = _norm_argument(norm_layer)
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
        norm, affine = _norm_argument(norm_layer)
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
        norm, affine = _norm_argument(norm_layer)
        super().__init__(input_nc, ndf, norm, impl, recompute, affine)


def get_norm_layer(norm_type: str = "instance") -> NormLayer:
    """Return a constructor for the norm ``norm_type``: batch, syncbatch, instance or none.

    Raises NotImplementedError for any other name.
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


def _initialised(net: nn.Module, init_type: str, init_gain: float, gpu_ids: Sequence[int]) -> nn.Module:
    """Initialise ``net`` and return it, as the official code does.

    If ``gpu_ids`` is not empty, the network is wrapped in DataParallel over these GPUs.
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
    return _initialised(net, init_type, init_gain, gpu_ids)


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
    return _initialised(net, init_type, init_gain, gpu_ids)


class GANLoss(nn.Module):
    """The official ``GANLoss``: a scalar loss of logits that should be classified as real or as fake.

    ``gan_mode`` is lsgan, vanilla or wgangp (without the gradient penalty).
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
        """Return the target label, expanded to the shape of ``prediction``."""
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
    """The official ``ImagePool``: a history of up to ``pool_size`` generated images.

    As in the official code, random numbers come from Python's ``random``.
    """

    def __init__(self, pool_size: int) -> None:
        self.pool_size = pool_size
        self._pool = reference.ReplayPool(pool_size)

    @property
    def images(self) -> list[Tensor]:
        """The stored images, [1, C, H, W] each."""
        return [image[None] for image in self._pool.images]

    @property
    def num_imgs(self) -> int:
        return len(self._pool.images)

    def query(self, images: Tensor) -> Tensor:
        """Return the images to show to the discriminator instead of ``images`` [N, C, H, W], detached.

        For each new image, either that image is returned, or a stored one that it replaces in the pool.
        """
        if self.pool_size == 0:
            return images
        shown = []
        for image in images:
            shown.append(self._pool.query(image[None], [self._draw()]))
        return torch.cat(shown)

    def _draw(self) -> tuple[float, float]:
        """Draw random numbers as the official code does and return them as (swap, place).

        Nothing is drawn while the pool is filling.
        """
        if self.num_imgs < self.pool_size or random.uniform(0, 1) <= 0.5:
            return 1.0, 0.0
        return 0.0, (random.randint(0, self.pool_size - 1) + 0.5) / self.pool_size
