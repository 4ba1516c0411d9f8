"""The drop-in networks: the reference's function and keys, the choice of impl, and shapes read off weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastcyclegan
from fastcyclegan import reference as ref
from fastcyclegan.config import ModelConfig
from fastcyclegan.networks import (
    Discriminator,
    Generator,
    PixelDiscriminator,
    UnetGenerator,
    build_discriminator,
    build_generator,
    generator_arguments,
)

PAIRS: list[tuple[type[nn.Module], type[nn.Module], dict[str, Any]]] = [
    (Generator, ref.Generator, {"ngf": 4, "n_blocks": 2}),
    (UnetGenerator, ref.UnetGenerator, {"ngf": 2, "num_downs": 5}),
    (Discriminator, ref.Discriminator, {"ndf": 4}),
    (PixelDiscriminator, ref.PixelDiscriminator, {"ndf": 4}),
]


@pytest.mark.parametrize(("ours", "theirs", "arguments"), PAIRS)
def test_same_function_and_gradients_as_the_reference(ours: type[nn.Module], theirs: type[nn.Module], arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    a, b = ours(**arguments).double(), theirs(**arguments).double()
    b.load_state_dict(a.state_dict())
    x, y = (torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    out_a, out_b = a(x), b(y)
    grad = torch.randn_like(out_a)
    out_a.backward(grad)
    out_b.backward(grad)
    assert torch.equal(out_a, out_b)
    assert torch.equal(x.grad, y.grad)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_output_is_fp32_under_autocast_and_tanh_is_computed_in_fp32() -> None:
    """A bf16 tanh has steps of a whole gray level near 1."""
    torch.manual_seed(0)
    for net in (Generator(ngf=4, n_blocks=1), UnetGenerator(ngf=2, num_downs=5)):
        with torch.autocast("cpu", torch.bfloat16):
            out = net(torch.randn(1, 3, 32, 32))
        assert out.dtype == torch.float32
        assert not torch.equal(out, out.to(torch.bfloat16).float())


def test_impl_is_shown_and_checked() -> None:
    assert "impl=auto (reference)" in repr(fastcyclegan.Generator(ngf=1, n_blocks=0))
    for kind in (Generator, UnetGenerator, Discriminator, PixelDiscriminator):
        with pytest.raises(ValueError, match="impl must be auto, triton or reference, got 'cuda'"):
            kind(impl="cuda")
        with pytest.raises(ValueError, match="impl='triton' cannot serve"):
            kind(impl="triton")


def test_builders_by_the_official_names() -> None:
    def built(**changes: Any) -> nn.Module:
        return build_generator(ModelConfig(ngf=2, ndf=2, **changes), 3, 1)

    assert sum(isinstance(m, ref.ResidualBlock) for m in built(netG="resnet_6blocks").modules()) == 6
    assert built(netG="unet_128").size_multiple == 128
    assert isinstance(build_discriminator(ModelConfig(netD="pixel"), 3), PixelDiscriminator)
    layers = [
        sum(isinstance(m, nn.Conv2d) for m in build_discriminator(c, 3).modules())
        for c in (ModelConfig(n_layers_D=5), ModelConfig(netD="n_layers", n_layers_D=5))
    ]
    assert layers == [5, 7]  # basic has its three layers whatever n_layers_D says


SHAPES: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (
        Generator,
        {"input_nc": 1, "output_nc": 3, "ngf": 4, "n_blocks": n, "norm": norm, "affine": affine, "use_dropout": drop, "upsample": up},
    )
    for n, norm, affine, drop, up in [
        (9, "instance", False, False, "transpose"),
        (0, "instance", False, False, "resize"),
        (2, "instance", True, True, "resize"),
        (1, "batch", False, True, "transpose"),
        (3, "none", False, False, "resize"),
    ]
] + [
    (UnetGenerator, {"input_nc": 3, "output_nc": 1, "num_downs": n, "ngf": 2, "norm": norm})
    for n, norm in [(8, "instance"), (7, "batch"), (5, "none")]
]


@pytest.mark.parametrize(("kind", "arguments"), SHAPES)
def test_shape_is_read_off_the_weights(kind: type[nn.Module], arguments: dict[str, Any]) -> None:
    found, read = generator_arguments(kind(**arguments).state_dict())
    assert found is kind
    assert read == arguments


def test_weights_that_are_no_generator() -> None:
    with pytest.raises(ValueError, match="not a generator that is known here"):
        generator_arguments(Discriminator(ndf=2).state_dict())
    with pytest.raises(ValueError, match="'missing'"):
        generator_arguments({})
