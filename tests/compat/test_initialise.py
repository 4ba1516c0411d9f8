"""Tests of the drop-in initialisation, compared with the official rule, written out here."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastcyclegan import compat, reference


class ConvPair(nn.Module):
    """A module with Conv in its name and a weight of its own, as projects have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))
        self.inner = nn.Conv1d(4, 4, 3)


def _net() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True)]
    more = [ConvPair(), nn.ConvTranspose2d(4, 2, 3, bias=False), nn.BatchNorm2d(2, affine=False)]
    return nn.Sequential(*layers, *more, nn.Flatten(), nn.Linear(8, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize("init_type", reference.INIT_TYPES)
def test_weights_are_those_of_the_official_rule(init_type: str) -> None:
    net, gain = _net(), 0.3
    for p in net.parameters():
        nn.init.normal_(p)
    wanted = copy.deepcopy(net)
    torch.manual_seed(4)
    assert compat.init_weights(net, init_type, gain) is None  # type: ignore[func-returns-value]
    torch.manual_seed(4)
    for name in ("0", "1", "3.inner", "3", "4", "7"):
        layer = wanted.get_submodule(name)
        weight, bias = layer.weight, getattr(layer, "bias", None)
        with torch.no_grad():
            if name == "1":
                weight.normal_(1.0, gain)
            elif init_type == "normal":
                weight.normal_(0.0, gain)
            elif init_type == "xavier":
                nn.init.xavier_normal_(weight, gain)
            elif init_type == "kaiming":
                nn.init.kaiming_normal_(weight, a=0, mode="fan_in")
            else:
                nn.init.orthogonal_(weight, gain)
            if bias is not None:
                bias.zero_()
    for name, value in wanted.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_init_net_initialises_and_returns_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    net, other = _net(), _net()
    torch.manual_seed(4)
    assert compat.init_net(net, "xavier", 0.3, []) is net
    torch.manual_seed(4)
    compat.init_weights(other, "xavier", 0.3)
    for name in ("0.weight", "3.weight", "7.weight"):
        assert torch.equal(net.state_dict()[name], other.state_dict()[name])
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
def test_init_net_wraps_the_network_for_its_gpus() -> None:
    net = compat.init_net(nn.Conv2d(3, 3, 1), gpu_ids=[0])
    assert isinstance(net, nn.DataParallel)
    assert net.module.weight.device == torch.device("cuda", 0)


def test_an_unknown_init_type_changes_nothing() -> None:
    net = _net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(NotImplementedError, match=r"init_type must be one of normal, .*, got 'zeros'"):
        compat.init_net(net, "zeros")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
