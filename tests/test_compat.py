"""Tests of the drop-in constructors: official signatures, state_dict keys, parameter counts and results."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan import compat, reference

_FORMATS = (torch.contiguous_format, torch.channels_last)
INSTANCE = functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)

OFFICIAL = {
    "ResnetGenerator": (
        "input_nc, output_nc, ngf=64, norm_layer=BatchNorm2d, use_dropout=False, n_blocks=6,"
        " padding_type=reflect"
    ),
    "UnetGenerator": "input_nc, output_nc, num_downs, ngf=64, norm_layer=BatchNorm2d, use_dropout=False",
    "NLayerDiscriminator": "input_nc, ndf=64, n_layers=3, norm_layer=BatchNorm2d",
    "PixelDiscriminator": "input_nc, ndf=64, norm_layer=BatchNorm2d",
    "define_G": (
        "input_nc, output_nc, ngf, netG, norm=batch, use_dropout=False, init_type=normal, init_gain=0.02,"
        " gpu_ids=()"
    ),
    "define_D": "input_nc, ndf, netD, n_layers_D=3, norm=batch, init_type=normal, init_gain=0.02, gpu_ids=()",
    "GANLoss": "gan_mode, target_real_label=1.0, target_fake_label=0.0",
    "ImagePool": "pool_size",
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_signatures(name: str) -> None:
    def formatted(parameter: inspect.Parameter) -> str:
        default = parameter.default
        return (
            parameter.name
            if default is parameter.empty
            else f"{parameter.name}={getattr(default, '__name__', default)}"
        )

    parameters = inspect.signature(getattr(compat, name)).parameters.values()
    assert ", ".join(formatted(p) for p in parameters if p.kind is not p.KEYWORD_ONLY) == OFFICIAL[name]


@pytest.mark.parametrize(
    ("build", "tensors", "parameters"),
    [
        (lambda: compat.ResnetGenerator(3, 3, norm_layer=INSTANCE, n_blocks=9), 48, 11_378_179),
        (lambda: compat.ResnetGenerator(3, 3, norm_layer=nn.InstanceNorm2d), 36, 7_837_699),
        (lambda: compat.ResnetGenerator(3, 3, n_blocks=9), 140, 11_383_427),
        (
            lambda: compat.ResnetGenerator(
                3, 3, norm_layer=functools.partial(nn.InstanceNorm2d, affine=True), n_blocks=9
            ),
            94,
            11_388_675,
        ),
        (lambda: compat.UnetGenerator(3, 3, 8, norm_layer=INSTANCE), 32, 54_409_603),
        (lambda: compat.NLayerDiscriminator(3, norm_layer=INSTANCE), 10, 2_764_737),
        (lambda: compat.PixelDiscriminator(3, norm_layer=INSTANCE), 6, 8_705),
    ],
)
def test_official_counts(build: Callable[[], nn.Module], tensors: int, parameters: int) -> None:
    with torch.device("meta"):
        net = build()
    assert (len(net.state_dict()), sum(p.numel() for p in net.parameters())) == (tensors, parameters)


def _identity(channels: int) -> nn.Module:
    return nn.Identity()


@pytest.mark.parametrize(
    ("norm_layer", "bias"),
    [
        (nn.InstanceNorm2d, True),
        (INSTANCE, True),
        (nn.BatchNorm2d, False),
        (functools.partial(nn.GroupNorm, 1), False),
        (_identity, False),
    ],
)
def test_convolutions_have_a_bias_only_before_instance_norm(norm_layer: Any, bias: bool) -> None:
    G = compat.ResnetGenerator(3, 3, 2, norm_layer, n_blocks=1)
    D = compat.NLayerDiscriminator(3, 2, 1, norm_layer)
    assert [(net.model[i].bias is not None) for net, i in ((G, 1), (G, 4), (D, 2))] == [bias] * 3
    assert G.model[-2].bias is not None
    assert D.model[0].bias is not None


@pytest.mark.parametrize("padding_type", ["reflect", "replicate", "zero"])
def test_blocks_use_the_given_padding_type(padding_type: str) -> None:
    """Compare a residual block with torch's own padded convolution and norm, applied twice."""
    net = compat.ResnetGenerator(
        3, 3, 2, nn.InstanceNorm2d, n_blocks=1, padding_type=padding_type, impl="reference"
    ).double()
    block, x = net.model[10], torch.randn(2, 8, 6, 5, dtype=torch.float64)
    convs = [layer for layer in block.conv_block if isinstance(layer, nn.Conv2d)]
    y = x
    for number, conv in enumerate(convs):
        mode = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}[padding_type]
        y = nn.functional.conv2d(nn.functional.pad(y, (1, 1, 1, 1), mode=mode), conv.weight, conv.bias)
        y = nn.functional.instance_norm(y)
        y = y.relu() if number == 0 else y
    torch.testing.assert_close(block(x), x + y, rtol=1e-12, atol=1e-12)
    names = [name for name in net.state_dict() if name.startswith("model.10.") and name.endswith("weight")]
    first, second = (0, 3) if padding_type == "zero" else (1, 5)
    assert names == [f"model.10.conv_block.{first}.weight", f"model.10.conv_block.{second}.weight"]


@pytest.mark.parametrize(
    "norm_layer", [lambda c: nn.InstanceNorm2d(c), lambda c: nn.InstanceNorm2d(c, affine=True)]
)
def test_norms_built_by_a_function_have_correct_gradients(norm_layer: Any) -> None:
    """Check gradients for a single image in channels_last, where torch's own backward on the CPU is wrong."""
    net = compat.ResnetGenerator(3, 3, 2, norm_layer, n_blocks=1, impl="reference").double()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    dy = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    plain, last = (
        torch.autograd.grad(net(x.to(memory_format=f)), net.model[4].weight, dy)[0] for f in _FORMATS
    )
    torch.testing.assert_close(last, plain)


def test_define_functions_build_the_networks_of_the_official_names() -> None:
    torch.manual_seed(3)
    G = compat.define_G(3, 1, 4, "resnet_6blocks", "instance", True)
    D = compat.define_D(3, 4, "basic", norm="instance")
    torch.manual_seed(3)
    plain_G = reference.init_weights(reference.Generator(3, 1, 4, 6, "instance", use_dropout=True))
    plain_D = reference.init_weights(reference.Discriminator(3, 4, 3, "instance"))
    for ours, expected in ((G, plain_G), (D, plain_D)):
        assert all(
            torch.equal(a, b)
            for a, b in zip(ours.state_dict().values(), expected.state_dict().values(), strict=True)
        )
        assert list(ours.state_dict()) == list(expected.state_dict())
    assert isinstance(compat.define_G(3, 3, 2, "unet_128"), compat.UnetGenerator)
    assert isinstance(compat.define_D(3, 2, "pixel"), compat.PixelDiscriminator)
    assert len(compat.define_D(3, 2, "n_layers", 1).model) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: compat.define_G(3, 3, 4, "resnet_5blocks"),
            "netG must be one of resnet_9blocks, resnet_6blocks, unet_128, unet_256",
        ),
        (lambda: compat.define_D(3, 4, "patch"), "netD must be one of basic, n_layers, pixel, got 'patch'"),
        (
            lambda: compat.define_G(3, 3, 4, "unet_128", "layer"),
            "norm must be one of batch, syncbatch, instance, none, got 'layer'",
        ),
        (lambda: compat.define_D(3, 4, "pixel", init_type="zeros"), "init_type must be one of normal"),
        (lambda: compat.GANLoss("hinge"), "gan_mode must be one of lsgan"),
    ],
)
def test_unknown_names(call: Callable[[], object], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        call()


@pytest.mark.parametrize("mode", reference.GAN_MODES)
def test_gan_loss(mode: str) -> None:
    logits, loss = torch.randn(2, 1, 3, 3, requires_grad=True), compat.GANLoss(mode)
    for real in (True, False):
        assert torch.equal(loss(logits, real), reference.gan_loss(logits, real, mode))
    assert (
        torch.isfinite(compat.GANLoss("lsgan")(torch.full((1, 1, 2, 2), 300.0).half(), True))
        or mode != "lsgan"
    )
    soft = compat.GANLoss("lsgan", 0.9, 0.1)(logits, True)
    torch.testing.assert_close(soft, (logits - 0.9).square().mean())
    assert set(loss.state_dict()) == {"real_label", "fake_label"}


def test_image_pool_draws_like_the_official_one() -> None:
    """Compare with the official replacement policy, written out here with Python's random.

    Nothing is drawn while the pool is filling. After that, a coin toss is drawn first, and then a place.
    """
    pool, stored = compat.ImagePool(3), []
    random.seed(5)
    results = [
        pool.query(torch.full((2, 1, 1, 1), float(n)) + torch.tensor([0.0, 0.5]).view(2, 1, 1, 1))
        for n in range(20)
    ]
    random.seed(5)
    for n, shown in enumerate(results):
        for i in range(2):
            value = n + 0.5 * i
            if len(stored) < 3:
                stored.append(value)
            elif random.uniform(0, 1) > 0.5:
                place = random.randint(0, 2)
                stored[place], value = value, stored[place]
            assert shown[i].item() == value
    assert [image.item() for image in pool.images] == stored
    assert pool.images[0].shape == (1, 1, 1, 1)
    assert pool.num_imgs == 3
    x = torch.randn(1, 1, 2, 2)
    assert compat.ImagePool(0).query(x) is x
