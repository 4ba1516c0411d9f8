"""Tests of the drop-in networks: state_dict keys, parameter counts and results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan import compat, reference

_FORMATS = (torch.contiguous_format, torch.channels_last)
INSTANCE = functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)


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
        (
            lambda: compat.ResnetGenerator(3, 3, 4, padding_type="same"),
            "padding_type must be one of reflect, replicate, zero, got 'same'",
        ),
    ],
)
def test_unknown_names(call: Callable[[], object], message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        call()
