"""Every official network is recognised by its keys and shapes, and rebuilt from its settings."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fastcyclegan.checkpoints.architecture import Architecture, recognise
from fastcyclegan.config import ModelConfig
from fastcyclegan.nn.networks import (
    Discriminator,
    Generator,
    PixelDiscriminator,
    UnetGenerator,
    build_discriminator,
    build_generator,
)

RESNETS = [
    (9, "instance", False, False, "transpose", "reflect", "stride"),  # the official default
    (0, "instance", False, False, "resize", "reflect", "stride"),  # no blocks, only the layers around them
    (2, "instance", True, True, "resize", "reflect", "stride"),  # as in vintagify; dropout shifts the keys
    # zero padding and dropout shift the keys in a fourth way
    (1, "batch", False, True, "transpose", "zero", "stride"),
    (3, "none", False, False, "resize", "reflect", "stride"),
    (6, "instance", False, False, "transpose", "zero", "stride"),
    (9, "instance", False, False, "antialias", "reflect", "antialias"),  # the default of CUT
    (4, "batch", False, True, "transpose", "reflect", "antialias"),  # CUT with --no_antialias_up
    (6, "none", False, False, "antialias", "reflect", "stride"),  # CUT with --no_antialias
    (0, "instance", True, False, "resize", "reflect", "antialias"),  # which no other project has
]
NETWORKS: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (
        Generator,
        {"input_nc": 1, "output_nc": 3, "ngf": 4, "n_blocks": n, "norm": norm, "affine": affine}
        | {"use_dropout": drop, "upsample": up, "padding_type": pad, "downsample": down},
    )
    for n, norm, affine, drop, up, pad, down in RESNETS
]
NETWORKS += [
    (UnetGenerator, {"input_nc": 3, "output_nc": 1, "num_downs": n, "ngf": 2, "norm": norm, "affine": affine})
    for n, norm, affine in [
        (8, "instance", False),
        (7, "batch", False),
        (5, "none", False),
        (7, "instance", True),
    ]
]
NETWORKS += [
    (Discriminator, {"input_nc": 3, "ndf": 4, "n_layers": n, "norm": norm, "affine": affine})
    for n, norm, affine in [
        (3, "instance", False),
        (1, "batch", False),
        (5, "instance", True),
        (2, "none", False),
    ]
]
NETWORKS += [
    (PixelDiscriminator, {"input_nc": 1, "ndf": 4, "norm": norm, "affine": affine})
    for norm, affine in [("instance", False), ("batch", False), ("instance", True), ("none", False)]
]


@pytest.mark.parametrize(("kind", "arguments"), NETWORKS)
def test_recognises_every_network_by_its_keys_and_shapes(
    kind: type[nn.Module], arguments: dict[str, Any]
) -> None:
    recognised = recognise(kind(**arguments).state_dict())
    assert (recognised.kind, recognised.arguments) == (kind, arguments)
    assert list(recognised.build().state_dict()) == list(kind(**arguments).state_dict())


@pytest.mark.parametrize(("kind", "arguments"), NETWORKS)
def test_settings_build_the_same_network(kind: type[nn.Module], arguments: dict[str, Any]) -> None:
    architecture = Architecture(kind, arguments)
    trainable = arguments.get("padding_type") != "zero"
    if not trainable:
        with pytest.raises(ValueError, match="can be trained with fastcyclegan"):
            architecture.settings()
        return
    config = ModelConfig(**architecture.settings())
    if architecture.is_generator:
        built = build_generator(config, arguments["input_nc"], arguments["output_nc"])
    else:
        built = build_discriminator(config, arguments["input_nc"])
    assert {k: v.shape for k, v in built.state_dict().items()} == {
        k: v.shape for k, v in kind(**arguments).state_dict().items()
    }
