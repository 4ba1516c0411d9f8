"""CycleGAN in plain PyTorch: networks, losses, the replay pool and one training step.

This file is the specification; read it first. Everything else in the package is a faster way to compute the
same results, and is tested against this file. This file imports only torch and does nothing clever. The
classes that a network is built from (its Sequential, residual block and tanh) are class attributes, so that a
faster network of the same structure can be a subclass.

Source: Zhu, Park, Isola, Efros, "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial
Networks", ICCV 2017 (sections 3 and 4, appendix 7); the state_dict keys and defaults are those of the
authors' PyTorch implementation.

Domains and names: ``G_AB`` translates A to B, and ``G_BA`` translates B to A. ``D_A`` is the discriminator
for images of domain A, and ``D_B`` for images of domain B. Images are float tensors [N, C, H, W] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("instance", "batch", "none")
GAN_MODES = ("lsgan", "vanilla", "wgangp")
INIT_TYPES = ("normal", "xavier", "kaiming", "orthogonal")
DOWNSAMPLES = ("stride", "antialias")
UPSAMPLES = ("transpose", "resize", "antialias")
PADDING_TYPES = ("reflect", "replicate", "zero")
AUGMENTATIONS = ("color", "translation", "cutout")
Norm = str | Callable[[int], nn.Module]
"""One of NORMS, or a callable that builds a normalisation layer for a number of channels, such as
nn.BatchNorm2d or a functools.partial of it.
"""


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


# --- Networks -----------------------------------------------------------------------------------------------


def contiguous_gradient(x: Tensor) -> Tensor:
    """Return ``x`` unchanged, and make its gradient contiguous in NCHW memory.

    The gradient passes through one dimension, so autograd brings it into this order. Views alone do this, and
    not a function of our own, so the result can be changed in place, exported, traced and scripted.
    """
    return x.flatten().view(x.shape)


class InstanceNorm2d(nn.InstanceNorm2d):
    """torch's InstanceNorm2d with a correct backward for channels_last gradients.

    On the CPU, torch's own backward (seen in 2.13) returns a wrong gradient for a single image whose upstream
    gradient is channels_last, because it reads that memory as NCHW. Here the result does not depend on the
    memory layout.
    """

    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        use_input = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        y = F.instance_norm(input, mean, var, self.weight, self.bias, use_input, momentum, self.eps)
        return contiguous_gradient(y)


def norm_layer(norm: Norm, channels: int, affine: bool = False) -> nn.Module:
    """Build the normalisation layer ``norm`` for ``channels`` channels.

    Instance norm has no running statistics and, unless ``affine`` is set, no parameters. Raises ValueError
    for an unknown ``norm``, and for ``affine`` with any norm other than "instance".
    """
    if callable(norm) and not affine:
        return norm(channels)
    _check_choice("norm", norm, NORMS)
    if affine and norm != "instance":
        raise ValueError(f"affine=True needs norm='instance', got norm={norm!r}")
    if norm == "instance":
        return InstanceNorm2d(channels, affine=affine)
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


def has_bias(norm: Norm) -> bool:
    """Return whether a convolution before ``norm`` has a bias.

    As in the official code, only convolutions before instance norm have one.
    """
    return norm == "instance" or getattr(norm, "func", norm) in (nn.InstanceNorm2d, InstanceNorm2d)


class ResizeConv2d(nn.Conv2d):
    """Upsampling by nearest-neighbour resizing by 2, followed by a reflection-padded 3x3 convolution.

    It avoids checkerboard patterns (Odena et al. 2016). Input [N, C, H, W], output [N, out, 2H, 2W].
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.interpolate(x, scale_factor=2.0, mode="nearest"), (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.weight, self.bias)


def _binomial_filter(coefficients: Sequence[float], channels: int) -> Tensor:
    """Return a blur with the sum 1 as the weight [channels, 1, k, k] of a depthwise convolution."""
    row = torch.tensor(coefficients)
    return (torch.outer(row, row) / sum(coefficients) ** 2).repeat(channels, 1, 1, 1)


class AntialiasedDownsample(nn.Module):
    """Downsampling by 2: a reflection-padded binomial 3x3 blur of each channel with stride 2.

    Source: Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019, as in the generator of
    Park et al., "Contrastive Learning for Unpaired Image-to-Image Translation", ECCV 2020. The filter is the
    buffer ``filt`` [C, 1, 3, 3]. Input [N, C, H, W], output [N, C, H/2, W/2].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.filt = nn.Buffer(_binomial_filter((1.0, 2.0, 1.0), channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.filt, stride=2, groups=self.channels)

    def extra_repr(self) -> str:
        return f"{self.channels}"


class AntialiasedUpsample(nn.Module):
    """Upsampling by 2: a replication-padded transposed binomial 4x4 blur of each channel with stride 2.

    Sources as for ``AntialiasedDownsample``. The filter, with the sum 4, is the buffer ``filt`` [C, 1, 4, 4].
    Input [N, C, H, W], output [N, C, 2H, 2W].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.filt = nn.Buffer(4.0 * _binomial_filter((1.0, 3.0, 3.0, 1.0), channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        # CUT pads by 2 and then cuts one more pixel from each side.
        return F.conv_transpose2d(x, self.filt, stride=2, padding=3, groups=self.channels)

    def extra_repr(self) -> str:
        return f"{self.channels}"


class ResidualBlock(nn.Module):
    """A residual block, x + block(x), with padded 3x3 convolutions and no activation after the sum.

    Input and output are [N, C, H, W]. By default, the convolutions have a bias if ``has_bias(norm)``.
    """

    sequential: type[nn.Sequential] = nn.Sequential

    def __init__(
        self,
        channels: int,
        norm: Norm,
        affine: bool,
        use_dropout: bool,
        padding_type: str = "reflect",
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        _check_choice("padding_type", padding_type, PADDING_TYPES)
        use_bias = has_bias(norm) if bias is None else bias

        def padded() -> list[nn.Module]:
            if padding_type == "zero":
                return [
                    nn.Conv2d(channels, channels, 3, padding=1, bias=use_bias),
                    norm_layer(norm, channels, affine),
                ]
            pad = nn.ReflectionPad2d(1) if padding_type == "reflect" else nn.ReplicationPad2d(1)
            return [pad, nn.Conv2d(channels, channels, 3, bias=use_bias), norm_layer(norm, channels, affine)]

        dropout = [nn.Dropout(0.5)] if use_dropout else []
        self.conv_block = self.sequential(*padded(), nn.ReLU(), *dropout, *padded())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def _upsampling(channels: int, upsample: str, bias: bool) -> list[nn.Module]:
    """Return the layers that double the size and halve the ``channels``. The last one is a convolution."""
    half = channels // 2
    if upsample == "resize":
        return [ResizeConv2d(channels, half, bias=bias)]
    if upsample == "antialias":
        return [AntialiasedUpsample(channels), nn.Conv2d(channels, half, 3, padding=1, bias=bias)]
    return [nn.ConvTranspose2d(channels, half, 3, stride=2, padding=1, output_padding=1, bias=bias)]


class Generator(nn.Module):
    """The ResNet generator of CycleGAN, by default ``resnet_9blocks``.

    The input is [N, input_nc, H, W], where H and W must be multiples of 4 and at least 8. The output is
    [N, output_nc, H, W] in [-1, 1]. ``padding_type`` applies to the residual blocks. The state_dict keys are
    those of the official ``ResnetGenerator``. With ``downsample`` and ``upsample`` "antialias", the layers
    and keys are those of the generator of CUT, which blurs where it changes the size. Raises ValueError for
    an unknown ``norm``, ``upsample``, ``downsample`` or ``padding_type``, and for counts below 1
    (``n_blocks`` may be 0).
    """

    size_multiple = 4
    sequential: type[nn.Sequential] = nn.Sequential
    residual_block: type[ResidualBlock] = ResidualBlock
    tanh: type[nn.Tanh] = nn.Tanh

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
        padding_type: str = "reflect",
        downsample: str = "stride",
    ) -> None:
        super().__init__()
        _check_choice("upsample", upsample, UPSAMPLES)
        _check_choice("downsample", downsample, DOWNSAMPLES)
        if min(input_nc, output_nc, ngf) < 1 or n_blocks < 0:
            raise ValueError(
                f"Generator: input_nc={input_nc}, output_nc={output_nc}, ngf={ngf}, n_blocks={n_blocks} must"
                " be positive"
            )
        use_bias = has_bias(norm)

        def normed(conv: nn.Module, channels: int) -> list[nn.Module]:
            return [conv, norm_layer(norm, channels, affine), nn.ReLU()]

        layers = [nn.ReflectionPad2d(3), *normed(nn.Conv2d(input_nc, ngf, 7, bias=use_bias), ngf)]
        for width in (2 * ngf, 4 * ngf):
            stride = 2 if downsample == "stride" else 1
            layers += normed(nn.Conv2d(width // 2, width, 3, stride, padding=1, bias=use_bias), width)
            if downsample == "antialias":
                layers.append(AntialiasedDownsample(width))
        for _ in range(n_blocks):
            layers.append(self.residual_block(4 * ngf, norm, affine, use_dropout, padding_type))
        for width in (4 * ngf, 2 * ngf):
            *before, conv = _upsampling(width, upsample, use_bias)
            layers += [*before, *normed(conv, width // 2)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, 7), self.tanh()]
        self.model = self.sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class UnetBlock(nn.Module):
    """One level of the U-Net: downsampling, the level below, and upsampling.

    All levels except the outermost concatenate their input with the result. The official code applies the
    first LeakyReLU in place, so its skip connection carries LeakyReLU(x). A ReLU follows every skip, so a
    U-Net of these blocks computes the same function as the official one, with the same gradient. The
    innermost block has no level ``below``.
    """

    sequential: type[nn.Sequential] = nn.Sequential
    tanh: type[nn.Tanh] = nn.Tanh

    def __init__(
        self,
        outer: int,
        inner: int,
        below: nn.Module | None,
        norm: Norm,
        affine: bool = False,
        *,
        input_nc: int | None = None,
        outermost: bool = False,
        dropout: bool = False,
    ) -> None:
        super().__init__()
        self.outermost = outermost
        use_bias = has_bias(norm)
        down = nn.Conv2d(
            outer if input_nc is None else input_nc, inner, 4, stride=2, padding=1, bias=use_bias
        )
        up_in = inner if below is None else 2 * inner
        up = nn.ConvTranspose2d(up_in, outer, 4, stride=2, padding=1, bias=use_bias or self.outermost)
        if self.outermost:
            assert below is not None
            layers = [down, below, nn.ReLU(), up, self.tanh()]
        elif below is None:
            layers = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, norm_layer(norm, outer, affine)]
        else:
            layers = [
                nn.LeakyReLU(0.2),
                down,
                norm_layer(norm, inner, affine),
                below,
                nn.ReLU(),
                up,
                norm_layer(norm, outer, affine),
            ]
            layers += [nn.Dropout(0.5)] if dropout else []
        self.model = self.sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], dim=-3)


class UnetGenerator(nn.Module):
    """The U-Net generator of pix2pix (Isola et al. 2017).

    ``num_downs`` is 8 for ``unet_256`` and 7 for ``unet_128``. H and W must be multiples of 2**num_downs. The
    state_dict keys are those of the official ``UnetGenerator``. Raises ValueError for an unknown ``norm``,
    and if ``num_downs`` is below 5.
    """

    unet_block: type[UnetBlock] = UnetBlock

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        num_downs: int = 8,
        ngf: int = 64,
        norm: Norm = "instance",
        use_dropout: bool = False,
        affine: bool = False,
    ) -> None:
        super().__init__()
        if num_downs < 5:
            raise ValueError(f"UnetGenerator: num_downs must be at least 5, got {num_downs}")
        self.size_multiple = 2**num_downs
        block = self.unet_block(8 * ngf, 8 * ngf, None, norm, affine)
        for _ in range(num_downs - 5):
            block = self.unet_block(8 * ngf, 8 * ngf, block, norm, affine, dropout=use_dropout)
        for width in (4 * ngf, 2 * ngf, ngf):
            block = self.unet_block(width, 2 * width, block, norm, affine)
        self.model = self.unet_block(output_nc, ngf, block, norm, affine, input_nc=input_nc, outermost=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Discriminator(nn.Module):
    """The PatchGAN discriminator. With ``n_layers`` = 3, its patches are 70x70 pixels.

    The input is [N, input_nc, H, W]. The output is [N, 1, H', W'] logits, without a sigmoid (30x30 for
    256x256). The state_dict keys are those of the official ``NLayerDiscriminator``. Raises ValueError for an
    unknown ``norm`` or a count below 1.
    """

    sequential: type[nn.Sequential] = nn.Sequential

    def __init__(
        self,
        input_nc: int = 3,
        ndf: int = 64,
        n_layers: int = 3,
        norm: Norm = "instance",
        affine: bool = False,
    ) -> None:
        super().__init__()
        if min(input_nc, ndf, n_layers) < 1:
            raise ValueError(
                f"Discriminator: input_nc={input_nc}, ndf={ndf}, n_layers={n_layers} must be positive"
            )
        use_bias = has_bias(norm)
        layers: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = ndf
        for n in range(1, n_layers + 1):
            previous, width = width, ndf * min(2**n, 8)
            conv = nn.Conv2d(previous, width, 4, stride=2 if n < n_layers else 1, padding=1, bias=use_bias)
            layers += [conv, norm_layer(norm, width, affine), nn.LeakyReLU(0.2)]
        self.model = self.sequential(*layers, nn.Conv2d(width, 1, 4, stride=1, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class PixelDiscriminator(nn.Module):
    """The 1x1 PatchGAN discriminator, which classifies each pixel independently.

    The input is [N, input_nc, H, W], and the output is [N, 1, H, W] logits. Raises ValueError for an unknown
    ``norm`` or a count below 1.
    """

    sequential: type[nn.Sequential] = nn.Sequential

    def __init__(
        self, input_nc: int = 3, ndf: int = 64, norm: Norm = "instance", affine: bool = False
    ) -> None:
        super().__init__()
        if min(input_nc, ndf) < 1:
            raise ValueError(f"PixelDiscriminator: input_nc={input_nc}, ndf={ndf} must be positive")
        use_bias = has_bias(norm)
        self.net = self.sequential(
            nn.Conv2d(input_nc, ndf, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(ndf, 2 * ndf, 1, bias=use_bias),
            norm_layer(norm, 2 * ndf, affine),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * ndf, 1, 1, bias=use_bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


INITIALISERS: dict[str, Callable[[Tensor, float], object]] = {
    "normal": lambda w, gain: nn.init.normal_(w, 0.0, gain),
    "xavier": lambda w, gain: nn.init.xavier_normal_(w, gain=gain),
    "kaiming": lambda w, gain: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
    "orthogonal": lambda w, gain: nn.init.orthogonal_(w, gain=gain),
}
"""Functions that draw the values of a weight in place, by the names in INIT_TYPES."""


def init_weights(net: nn.Module, init_type: str = "normal", gain: float = 0.02) -> nn.Module:
    """Initialise ``net`` in place and return it.

    Convolution weights follow ``init_type``, biases are 0, and BatchNorm weights are drawn from N(1, gain).
    """
    _check_choice("init_type", init_type, INIT_TYPES)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            INITIALISERS[init_type](module.weight, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, gain)
            nn.init.zeros_(module.bias)
    return net


# --- Losses -------------------------------------------------------------------------------------------------


def gan_loss(logits: Tensor, target_is_real: bool, mode: str = "lsgan") -> Tensor:
    """Return the adversarial loss of a discriminator's ``logits``, a scalar.

    ``mode`` is lsgan (least squares, Mao et al. 2017), vanilla (cross entropy) or wgangp (Wasserstein).
    """
    _check_choice("gan_mode", mode, GAN_MODES)
    if mode == "wgangp":
        return -logits.mean() if target_is_real else logits.mean()
    target = torch.full_like(logits, 1.0 if target_is_real else 0.0)
    return (
        F.mse_loss(logits, target) if mode == "lsgan" else F.binary_cross_entropy_with_logits(logits, target)
    )


def gradient_penalty(
    D: nn.Module, real: Tensor, fake: Tensor, mix: Tensor, weight: float = 10.0, norm: float = 1.0
) -> Tensor:
    """Return the gradient penalty of WGAN-GP (Gulrajani et al. 2017, eq. 3).

    This is weight * E[(|grad D(x)| - norm)^2] at x = mix * real + (1 - mix) * fake. ``mix`` [N] contains one
    number in [0, 1) per image. The result is differentiable, so D must support double backward.
    """
    share = mix.to(real).view(-1, 1, 1, 1)
    x = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    length = (grad.flatten(1).square().sum(1) + 1e-16).sqrt()
    return weight * (length - norm).square().mean()


# --- Differentiable augmentation ----------------------------------------------------------------------------


def _integer(u: Tensor, count: int) -> int:
    """Return one of the integers 0 to ``count`` - 1, which ``u`` in [0, 1] selects."""
    return min(int(u * count), count - 1)


def _recolored(image: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = u.to(image).unbind()
    image = image + (brightness - 0.5)
    gray = image.mean(0, keepdim=True)
    image = (image - gray) * (2 * saturation) + gray
    mean = image.mean()
    return (image - mean) * (contrast + 0.5) + mean


def _translated(image: Tensor, u: Tensor) -> Tensor:
    height, width = image.shape[1:]
    reach_y, reach_x = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    padded = F.pad(image, (reach_x, reach_x, reach_y, reach_y))
    y, x = _integer(u[0], 2 * reach_y + 1), _integer(u[1], 2 * reach_x + 1)
    return padded[:, y : y + height, x : x + width]


def _with_cutout(image: Tensor, u: Tensor) -> Tensor:
    mask = torch.ones_like(image)
    spans = []
    for side, number in zip(image.shape[1:], u, strict=True):
        length = int(side * 0.5 + 0.5)
        start = _integer(number, side + 1 - length % 2) - length // 2
        spans.append(slice(max(start, 0), start + length))
    mask[:, spans[0], spans[1]] = 0
    return image * mask


def augment_image(image: Tensor, augmentations: Sequence[str], u: Tensor) -> Tensor:
    """Return ``image`` [C, H, W] as a discriminator is shown it (DiffAugment, Zhao et al. 2020).

    ``augmentations`` are some of AUGMENTATIONS. color changes brightness, saturation and contrast.
    translation moves the image by up to 1/8 of its sides, and fills up with zeros. cutout sets a rectangle
    with half of its sides to zero, except for what lies outside the image. ``u`` [7] contains random numbers
    in [0, 1]: three for color, and two each, for y and x, for translation and cutout.
    """
    for name, function, numbers in (
        ("color", _recolored, u[:3]),
        ("translation", _translated, u[3:5]),
        ("cutout", _with_cutout, u[5:]),
    ):
        if name in augmentations:
            image = function(image, numbers)
    return image


def augment(images: Tensor, augmentations: Sequence[str], u: Tensor) -> Tensor:
    """Return ``images`` [N, C, H, W], each augmented by its column of the random numbers ``u`` [7, N]."""
    return torch.stack(
        [augment_image(image, augmentations, numbers) for image, numbers in zip(images, u.T, strict=True)]
    )


# --- One iteration ------------------------------------------------------------------------------------------


class ReplayPool:
    """The replay pool (Shrivastava et al. 2017) as a plain list, driven by the caller's random numbers.

    Until the pool is full, each image is stored and returned. After that, if ``swap`` < 1/2, a stored image
    is returned and the new one replaces it (slot = floor(place * capacity)); otherwise the new image is
    returned and not stored. With capacity 0, images are returned unchanged.
    """

    def __init__(self, capacity: int = 50) -> None:
        self.capacity = capacity
        self.images: list[Tensor] = []

    def query(self, images: Tensor, draws: Iterable[tuple[float, float]]) -> Tensor:
        """Return the images to show to the discriminator instead of the new ``images``, both [N, C, H, W].

        ``draws`` contains the random numbers (swap, place) in [0, 1) of each image, in order.
        """
        if self.capacity == 0:
            return images
        returned = []
        for image, (swap, place) in zip(images.detach(), draws, strict=True):
            if len(self.images) < self.capacity:
                self.images.append(image.clone())
                returned.append(image)
            elif swap < 0.5:
                slot = int(place * self.capacity)
                returned.append(self.images[slot])
                self.images[slot] = image.clone()
            else:
                returned.append(image)
        return torch.stack(returned)


@dataclass(frozen=True)
class LossWeights:
    """The kind of adversarial loss, and the weights of an iteration's loss terms.

    ``lambda_identity`` is relative to the weights of the cycle losses; 0 skips the identity passes.
    ``augmentations`` are applied to all images that the discriminators are shown (see ``augment_image``).
    """

    gan_mode: str = "lsgan"
    lambda_A: float = 10.0
    lambda_B: float = 10.0
    lambda_identity: float = 0.5
    lambda_gp: float = 10.0
    augmentations: tuple[str, ...] = ()


Numbers = Mapping[str, Tensor]
"""Random numbers [7, N] for ``augment``, by the names of the images that the discriminators are shown."""


def _shown(images: Tensor, name: str, w: LossWeights, numbers: Numbers | None) -> Tensor:
    """Return ``images`` as a discriminator is shown them."""
    if not w.augmentations:
        return images
    assert numbers is not None, "augmentations need random numbers"
    return augment(images, w.augmentations, numbers[name])


def generator_losses(
    nets: Mapping[str, nn.Module], a: Tensor, b: Tensor, w: LossWeights, numbers: Numbers | None = None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the generators' weighted loss terms by name, and the detached fake images of A and of B.

    The fake images are used in the discriminators' phase. ``numbers`` augments fake_A and fake_B for the
    discriminators.
    """
    G_AB, G_BA, D_A, D_B = (nets[name] for name in ("G_AB", "G_BA", "D_A", "D_B"))
    fake_B = G_AB(a)
    rec_A = G_BA(fake_B)
    fake_A = G_BA(b)
    rec_B = G_AB(fake_A)
    losses = {
        "G_AB": gan_loss(D_B(_shown(fake_B, "fake_B", w, numbers)), True, w.gan_mode),
        "G_BA": gan_loss(D_A(_shown(fake_A, "fake_A", w, numbers)), True, w.gan_mode),
        "cycle_A": w.lambda_A * F.l1_loss(rec_A, a),
        "cycle_B": w.lambda_B * F.l1_loss(rec_B, b),
    }
    if w.lambda_identity > 0:
        losses["idt_B"] = w.lambda_identity * w.lambda_B * F.l1_loss(G_AB(b), b)
        losses["idt_A"] = w.lambda_identity * w.lambda_A * F.l1_loss(G_BA(a), a)
    return losses, fake_A.detach(), fake_B.detach()


def discriminator_loss(
    D: nn.Module, real: Tensor, fake: Tensor, w: LossWeights, mix: Tensor | None = None
) -> Tensor:
    """Return half the sum of the losses on ``real`` images and on pooled, detached ``fake`` images.

    With wgangp, the sum includes the gradient penalty at ``mix`` [N].
    """
    loss = gan_loss(D(real), True, w.gan_mode) + gan_loss(D(fake), False, w.gan_mode)
    if w.gan_mode == "wgangp":
        assert mix is not None, "wgangp needs mix"
        loss = loss + gradient_penalty(D, real, fake, mix, w.lambda_gp)
    return 0.5 * loss


def train_step(
    nets: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    pools: Mapping[str, ReplayPool],
    a: Tensor,
    b: Tensor,
    draws: Mapping[str, Sequence[tuple[float, float]]],
    weights: LossWeights = LossWeights(),
    mix: Mapping[str, Tensor] | None = None,
    numbers: Numbers | None = None,
) -> dict[str, Tensor]:
    """Run one iteration in the official order and return the detached loss terms by name.

    ``optimizers`` has the keys "G" (for both generators) and "D" (for both discriminators). ``pools`` and
    ``draws`` have the keys "A" and "B", for the fake images of each domain. ``mix`` has the same keys, with a
    tensor [N] for each, and is only needed for wgangp. ``numbers`` are only needed for augmentations. They
    have the keys fake_A and fake_B for the generators' phase, and real_A, real_B, pooled_A and pooled_B for
    the discriminators' phase.
    """
    discriminators = [*nets["D_A"].parameters(), *nets["D_B"].parameters()]
    for p in discriminators:
        p.requires_grad_(False)
    optimizers["G"].zero_grad()
    losses, fake_A, fake_B = generator_losses(nets, a, b, weights, numbers)
    torch.stack(list(losses.values())).sum().backward()
    optimizers["G"].step()

    for p in discriminators:
        p.requires_grad_(True)
    optimizers["D"].zero_grad()
    pooled_B = pools["B"].query(fake_B, draws["B"])
    pooled_A = pools["A"].query(fake_A, draws["A"])
    mix = {} if mix is None else mix
    for side, real, pooled in (("B", b, pooled_B), ("A", a, pooled_A)):
        real = _shown(real, f"real_{side}", weights, numbers)
        pooled = _shown(pooled, f"pooled_{side}", weights, numbers)
        losses[f"D_{side}"] = discriminator_loss(nets[f"D_{side}"], real, pooled, weights, mix.get(side))
    losses["D_B"].backward()
    losses["D_A"].backward()
    optimizers["D"].step()
    return {name: loss.detach() for name, loss in losses.items()}
