"""Gradients that accumulate in place, and an Adam optimizer with its learning rate on the device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.config import OptimConfig
from fastcyclegan.engine.phase_optimizer import PhaseOptimizer
from fastcyclegan.kernels import accumulating
from fastcyclegan.nn.networks import Discriminator
from fastcyclegan.testing import parameters_that_count, relative_error

OPTIM = OptimConfig()


def pair(dtype: torch.dtype = torch.float32) -> list[nn.Module]:
    torch.manual_seed(0)
    return [
        Discriminator(ndf=2, n_layers=1).to(dtype=dtype, memory_format=torch.channels_last) for _ in range(2)
    ]


def backward(nets: list[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(1, 3, 8, 8).to(next(nets[0].parameters()))
    with accumulating():
        sum(net(x).square().sum() for net in nets).backward()


@pytest.mark.parametrize("in_place", [False, True])
def test_steps_equal_adam(in_place: bool) -> None:
    """The learning rate changes at every step, and only through its tensor.

    A frozen parameter does not change, even if it was trained before. In float64, rounding errors of 1e-16
    stay far below 1e-9 in 4 steps, except for biases that cancel out, whose gradients are nothing but
    rounding errors.
    """
    ours, expected = pair(torch.float64), pair(torch.float64)
    lr = torch.zeros((), dtype=torch.float64)
    trained = PhaseOptimizer(ours, OPTIM, lr, in_place=in_place)
    adam = torch.optim.Adam([p for net in expected for p in net.parameters()], 0.0, (0.5, 0.999))
    for n in range(4):
        if n == 2:
            for nets in (ours, expected):
                next(nets[0].parameters()).requires_grad_(False)
        lr.fill_(1e-3 * (n + 1))
        adam.param_groups[0]["lr"] = 1e-3 * (n + 1)
        with trained.gradients_ready():
            backward(ours, n)
            trained.step()
        backward(expected, n)
        adam.step()
        adam.zero_grad()
        assert all(p.grad is None for net in ours for p in net.parameters())
    for one, other in zip(ours, expected, strict=True):
        for name, p in parameters_that_count(other).items():
            assert relative_error(one.get_parameter(name), p) < 1e-9, name


def test_gradients_of_a_pair_are_adjacent() -> None:
    """One launch writes the weight gradients of both networks.

    The launch expects them at a fixed distance from each other, with the strides of the weights.
    """
    nets = pair()
    trained = PhaseOptimizer(nets, OPTIM, torch.zeros(()), in_place=True)
    with trained.gradients_ready():
        first, other = (net.model[0].weight for net in nets)
        assert other.grad.data_ptr() - first.grad.data_ptr() == 4 * first.numel()
        assert first.grad.stride() == first.stride()
        assert all(not p.grad.any() for net in nets for p in net.parameters())
        assert len({p.grad.untyped_storage().data_ptr() for net in nets for p in net.parameters()}) == 1


def test_a_decay_rate_that_is_an_integer() -> None:
    """In JSON and in Python, 0 is as good as 0.0, but not for Adam."""
    PhaseOptimizer(pair(), OptimConfig(beta1=0), torch.zeros(()), in_place=False)


def test_networks_of_different_shapes_are_trained() -> None:
    nets = [Discriminator(ndf=2, n_layers=1), Discriminator(ndf=3, n_layers=1)]
    trained = PhaseOptimizer(nets, OPTIM, torch.tensor(1e-3, dtype=torch.float64), in_place=True)
    before = copy.deepcopy(nets[1].state_dict())
    with trained.gradients_ready():
        backward(nets, 0)
        trained.step()
    assert not torch.equal(nets[1].state_dict()["model.0.weight"], before["model.0.weight"])
    assert [len(place) for place in trained.places] == [1] * len(trained.places)


def test_state_has_the_rate_as_a_number_and_loading_keeps_the_settings_of_adam() -> None:
    lr = torch.tensor(5e-4, dtype=torch.float64)
    trained, other = (PhaseOptimizer(pair(), OPTIM, lr, in_place=False) for _ in range(2))
    with trained.gradients_ready():
        backward(pair(), 0)
    state = trained.state_dict()
    assert state["param_groups"][0]["lr"] == 5e-4
    assert not isinstance(state["param_groups"][0]["lr"], Tensor)
    other.load_state_dict(
        {
            **state,
            "param_groups": [{**state["param_groups"][0], "lr": 0.1, "fused": None, "betas": [0.9, 0.9]}],
        }
    )
    (group,) = other.adam.param_groups
    assert group["lr"] is lr
    assert group["fused"] is True
    assert group["betas"] == (0.5, 0.999)  # the current setting, not the saved one
