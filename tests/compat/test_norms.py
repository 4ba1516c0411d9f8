"""Tests of the drop-in norms: their names, and the biases of the convolutions before them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan import compat

INSTANCE = compat.get_norm_layer("instance")


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


def test_the_norm_none_is_the_identity() -> None:
    x = torch.randn(1, 2, 3, 3)
    norm = compat.get_norm_layer("none")(2)
    assert isinstance(norm, compat.Identity)
    assert norm(x) is x
    assert compat.Identity()(x) is x
    assert not compat.Identity().state_dict()
