"""Tests of ``fast``: the same images as the network, with its weights at each call, and clear refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.checkpoints.loading import load_generator
from fastcyclegan.engine import devices
from fastcyclegan.inference import fast_network
from fastcyclegan.inference.fast_network import FastNetwork
from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.testing import assert_parity, assert_same_bits


@pytest.fixture
def net() -> Generator:
    torch.manual_seed(0)
    return Generator(ngf=8, n_blocks=1).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 16, 20) * 2 - 1


def expected(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(net).eval()(x.contiguous(memory_format=torch.channels_last))


def test_the_call_is_that_of_the_network(net: Generator, x: Tensor) -> None:
    fast = net.fast()
    assert_same_bits("batch", fast(x), expected(net, x))
    assert_same_bits("image", fast(x[0]), expected(net, x[:1])[0])
    assert not fast(x).requires_grad
    assert not fast(x).is_inference()
    assert fast(x[:0]).shape == (0, 3, 16, 20)
    with pytest.raises(ValueError, match="x must be"):
        fast(torch.zeros(1, 4, 16, 16))
    unet = UnetGenerator(num_downs=5, ngf=4).eval()
    image = torch.rand(1, 3, 32, 64)
    assert_same_bits("U-Net", unet.fast()(image), expected(unet, image))


def test_bf16(net: Generator, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_network, "has_bf16", lambda device: True)
    y = net.fast("bf16")(x)
    assert y.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        pytorch = net(x)
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
    assert_parity("bf16", y, pytorch, exact, torch.bfloat16)


def test_a_loaded_generator(tmp_path: Path, net: Generator, x: Tensor) -> None:
    torch.save(net.state_dict(), tmp_path / "latest_net_G_A.pth")
    assert_same_bits("loaded", load_generator(tmp_path / "latest_net_G_A.pth").fast()(x), expected(net, x))


def _step(net: nn.Module) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=True)
    net(torch.rand(1, 3, 16, 16)).square().sum().backward()
    optimizer.step()


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "in place": lambda net: [p.detach().mul_(1.5) for p in net.parameters()],
    "data": lambda net: [p.data.add_(0.1) for p in net.parameters()],
    "numpy": lambda net: [p.detach().numpy().__imul__(0.5) for p in net.parameters()],
    "a fused Adam step": _step,
    "new memory": lambda net: [setattr(p, "data", p.data * 2) for p in net.parameters()],
    "a new parameter": lambda net: setattr(
        net.model[1], "weight", nn.Parameter(torch.randn_like(net.model[1].weight))
    ),
    "load_state_dict": lambda net: net.load_state_dict(
        {name: torch.randn_like(t) for name, t in net.state_dict().items()}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_used(net: Generator, x: Tensor, change: str) -> None:
    fast = net.fast()
    before = fast(x)
    CHANGES[change](net)
    after = fast(x)
    assert not torch.equal(after, before)
    assert_same_bits("changed", after, expected(net, x))


def test_a_network_in_training_mode_is_used_in_eval_mode(x: Tensor) -> None:
    net = Generator(ngf=4, n_blocks=1, use_dropout=True)
    fast = net.fast()
    assert_same_bits("dropout", fast(x), expected(net, x))
    assert net.training


def test_the_weights_are_shared_under_the_same_names(net: Generator, x: Tensor) -> None:
    fast = net.fast()
    assert list(fast.state_dict()) == list(net.state_dict())
    fast.load_state_dict({name: torch.ones_like(t) for name, t in net.state_dict().items()})
    assert (next(net.parameters()) == 1).all()
    fast.to("meta")
    assert next(net.parameters()).is_meta


def test_copies_and_pickles_work(net: Generator, x: Tensor) -> None:
    fast = net.fast()
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert_same_bits("copy", other(x), fast(x))
        with torch.no_grad():
            next(other.parameters()).zero_()
        assert next(net.parameters()).any()
    assert copy.deepcopy(net).fast()(x).shape == x.shape  # the network itself is as it was


def test_gradients_and_training_are_refused(net: Generator, x: Tensor) -> None:
    fast = net.fast()
    with pytest.raises(RuntimeError, match="gives no gradients: call the network itself"):
        fast(x.clone().requires_grad_())
    with torch.no_grad():
        assert fast(x.clone().requires_grad_()).shape == x.shape
    with pytest.raises(RuntimeError, match="cannot be trained"):
        fast.train()
    assert fast.eval() is fast


@pytest.mark.parametrize(
    ("precision", "change", "match"),
    [
        ("fp16", lambda net: None, "precision must be fp32 or bf16, got 'fp16'"),
        ("fp32", lambda net: net.double(), r"must be float32, got float64 \(model.1.weight\)"),
        ("bf16", lambda net: net.half(), "must be float32, got float16"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    net: Generator, precision: str, change: Callable[[nn.Module], object], match: str
) -> None:
    change(net)
    with pytest.raises(ValueError, match=match):
        net.fast(precision)


def test_bf16_needs_instructions(net: Generator, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = net.fast()
    monkeypatch.setattr(fast_network, "has_bf16", lambda device: False)
    with pytest.raises(ValueError, match=r"cpu has no bf16 instructions: use fast\(precision='fp32'\)"):
        net.fast("bf16")
    net.double()
    with pytest.raises(ValueError, match="must be float32, got float64"):
        fast(x)
    assert devices.has_bf16(torch.device("meta")) is False


def test_a_fast_network_can_be_exported(net: Generator, x: Tensor) -> None:
    exported = torch.export.export(FastNetwork(net, "fp32"), (x,))
    torch.testing.assert_close(exported.module()(x), expected(net, x))
