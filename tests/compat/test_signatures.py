"""Tests that the drop-in functions and classes take the official arguments with the official defaults."""

from __future__ import annotations

import inspect

import pytest

from fastcyclegan import compat

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
    "get_norm_layer": "norm_type=instance",
    "init_weights": "net, init_type=normal, init_gain=0.02",
    "init_net": "net, init_type=normal, init_gain=0.02, gpu_ids=()",
    "get_scheduler": "optimizer, opt",
    "ResnetBlock": "dim, padding_type, norm_layer, use_dropout, use_bias",
    "UnetSkipConnectionBlock": (
        "outer_nc, inner_nc, input_nc=None, submodule=None, outermost=False, innermost=False,"
        " norm_layer=BatchNorm2d, use_dropout=False"
    ),
    "cal_gradient_penalty": ("netD, real_data, fake_data, device, type=mixed, constant=1.0, lambda_gp=10.0"),
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


def test_every_public_name_has_an_official_signature() -> None:
    """Only ``Identity`` has none: it is torch's own class."""
    assert {*OFFICIAL, "Identity"} == set(compat.__all__)
