"""What makes a prepared network out of date, which networks can be captured, and modes in threads."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fastcyclegan.inference.network_state import NetworkState, eval_mode
from fastcyclegan.nn.networks import Generator, set_impl


def network() -> Generator:
    return Generator(ngf=2, n_blocks=1, norm="batch")


def _nothing(net: Generator) -> None:
    pass


def _values(net: Generator) -> None:
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.add_(1)


def _memory(net: Generator) -> None:
    net.model[1].weight.data = net.model[1].weight.data.clone()


def _parameter(net: Generator) -> None:
    net.model[1].weight = nn.Parameter(net.model[1].weight.data)


def _buffer(net: Generator) -> None:
    net.model[2].running_mean = torch.zeros(2)


def _no_bias(net: Generator) -> None:
    net.model[2].bias = None


def _same_memory(net: Generator) -> None:
    weight = net.model[10].conv_block[1].weight
    weight.data = weight.data.transpose(0, 1)


def _dtype(net: Generator) -> None:
    net.double()


def _layer(net: Generator) -> None:
    net.model[0] = nn.ZeroPad2d(3)


def _hook(net: Generator) -> None:
    net.model[3].register_forward_pre_hook(lambda *_: None)


def _forward(net: Generator) -> None:
    net.model[3].forward = lambda x: x


@pytest.mark.parametrize("change", [_nothing, _values, lambda net: net.train(), lambda net: net.eval()])
def test_values_and_modes_do_not_count(change: Callable[[Generator], Any]) -> None:
    net = network()
    state = NetworkState(net)
    change(net)
    assert state.is_current(net)


@pytest.mark.parametrize(
    "change",
    [
        _memory,
        _parameter,
        _buffer,
        _no_bias,
        _same_memory,
        _dtype,
        _layer,
        _hook,
        _forward,
        functools.partial(set_impl, impl="reference"),
    ],
)
def test_what_a_graph_depends_on_is_noticed(change: Callable[[Generator], Any]) -> None:
    net = network()
    state = NetworkState(net)
    assert state.is_current(net)
    change(net)
    assert not state.is_current(net)
    assert not NetworkState(net).is_current(network())


def test_global_hooks_are_noticed() -> None:
    net = network()
    state = NetworkState(net)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not state.is_current(net)
        assert not NetworkState(net).can_capture
    finally:
        handle.remove()
    assert state.is_current(net)


def test_the_network_is_not_kept_alive() -> None:
    net = network()
    state, alive = NetworkState(net), weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None
    assert state.can_capture


class _Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_only_known_forwards_are_captured() -> None:
    class Named(Generator):
        pass

    assert NetworkState(Named(ngf=2, n_blocks=0)).can_capture
    net = network()
    nn.utils.parametrizations.spectral_norm(net.model[1])
    assert NetworkState(net).can_capture
    for change in (_hook, _forward, lambda net: net.model.append(_Own())):
        net = network()
        change(net)
        assert not NetworkState(net).can_capture


def test_modes_are_restored_by_the_last_of_several_threads() -> None:
    net = network().train()
    net.model[2].eval()
    modes = [module.training for module in net.modules()]
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with eval_mode(net):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=work)
    with eval_mode(net):
        thread.start()
        assert inside.wait(60)
    assert not any(module.training for module in net.modules())
    leave.set()
    thread.join()
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(KeyError), eval_mode(net):
        raise KeyError
    assert [module.training for module in net.modules()] == modes
