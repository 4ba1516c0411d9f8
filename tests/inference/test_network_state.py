"""Tests of noticing that a network has changed, and of its eval mode during a call."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastcyclegan.inference.network_state import NetworkState, eval_mode
from fastcyclegan.nn.networks import Generator, set_impl


@pytest.fixture
def net() -> Generator:
    return Generator(ngf=2, n_blocks=1)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "a parameter": lambda net: setattr(net.model[1], "weight", nn.Parameter(net.model[1].weight.clone())),
    "the memory of a parameter": lambda net: setattr(
        net.model[1].weight, "data", net.model[1].weight.data.clone()
    ),
    "a module": lambda net: net.model.__setitem__(3, nn.ReLU()),
    "a hook": lambda net: net.model[1].register_forward_hook(lambda *_: None),
    "a forward": lambda net: setattr(net.model[1], "forward", lambda x: x),
    "the implementation": lambda net: set_impl(net, "reference"),
    "the dtype": lambda net: net.double(),
    "the device": lambda net: net.to("meta"),
    "the memory layout": lambda net: net.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_graph_depends_on_is_noticed(net: Generator, change: str) -> None:
    state = NetworkState(net)
    assert state.is_current(net)
    CHANGES[change](net)
    assert not state.is_current(net)


def test_new_values_are_no_change(net: Generator) -> None:
    """Whoever uses the state reads the weights on every call."""
    state = NetworkState(net)
    with torch.no_grad():
        net.model[1].weight.mul_(2)
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    assert state.is_current(net)


def test_only_known_layers_without_hooks_are_captured(net: Generator) -> None:
    assert NetworkState(net).can_capture

    class Mine(nn.ReLU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    for change in (lambda net: net.model.__setitem__(3, Mine()), CHANGES["a hook"], CHANGES["a forward"]):
        changed = Generator(ngf=2, n_blocks=1)
        change(changed)
        assert not NetworkState(changed).can_capture


def test_eval_mode_restores_each_module(net: Generator) -> None:
    net.train()
    net.model[3].eval()
    before = [module.training for module in net.modules()]
    with eval_mode(net), eval_mode(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == before
    with pytest.raises(RuntimeError, match="in the call"), eval_mode(net):
        raise RuntimeError("in the call")
    assert [module.training for module in net.modules()] == before


def test_the_last_of_two_threads_restores_the_modes(net: Generator) -> None:
    entered, leave = threading.Event(), threading.Event()

    def call() -> None:
        with eval_mode(net):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(60)
    with eval_mode(net):
        pass
    assert not net.training
    leave.set()
    thread.join(60)
    assert net.training
