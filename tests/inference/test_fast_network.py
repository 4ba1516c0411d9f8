"""``fast`` gives a module with the same call, on the same weights, which refuses what it cannot do."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.inference import fast_network
from fastcyclegan.inference.fast_network import FastNetwork
from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.testing import assert_same_bits


def generator(**options: Any) -> Generator:
    torch.manual_seed(0)
    return Generator(**{"ngf": 4, "n_blocks": 1, "impl": "reference", **options})


def image(size: int = 16) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(autouse=True)
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch computes in bf16 on every CPU, and these tests should run on each."""
    monkeypatch.setattr(fast_network, "has_bf16", lambda device: True)


def expected(net: nn.Module, x: Tensor, precision: str) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        result: Tensor = net(x)
    return result


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("build", [generator, lambda: UnetGenerator(num_downs=5, ngf=2, impl="reference")])
def test_it_gives_the_network_s_images(build: Any, precision: str) -> None:
    net = build().eval()
    fast = net.fast(precision)
    for x in (
        image(32),
        image(32).repeat(2, 1, 1, 1),
        image(32).contiguous(memory_format=torch.channels_last),
    ):
        for _ in range(2):
            result = fast(x)
            assert_same_bits("the result", result, expected(net, x, precision))
            assert (result.dtype, result.requires_grad) == (torch.float32, False)
            assert result.is_contiguous() or not x.is_contiguous()
    assert_same_bits("a single image", fast(image(32)[0]), fast(image(32))[0])


def test_a_network_in_training_mode_is_used_in_eval_mode_and_left_as_it_is() -> None:
    net = generator(use_dropout=True, norm="batch").train()
    before = copy.deepcopy(net.state_dict())
    fast = net.fast()
    assert torch.equal(fast(image()), fast(image()))
    assert net.training
    assert not fast.training
    for name, value in net.state_dict().items():
        assert_same_bits(name, value, before[name])


def test_weights_are_shared_in_both_directions() -> None:
    net = generator().eval()
    fast = net.fast()
    fast(image())
    assert list(fast.state_dict()) == list(net.state_dict())
    assert all(a is b for a, b in zip(fast.parameters(), net.parameters(), strict=True))
    fast.load_state_dict({name: 2 * value for name, value in net.state_dict().items()})
    assert_same_bits("the result", fast(image()), expected(net, image(), "fp32"))
    net.model[1] = nn.Conv2d(3, 4, 7)
    assert fast.model[1] is net.model[1]
    assert_same_bits("the result", fast(image()), expected(net, image(), "fp32"))
    assert fast.to("meta") is fast
    assert next(net.parameters()).is_meta


def test_copies_and_pickles_contain_the_network() -> None:
    net = generator().eval()
    fast, x = net.fast("bf16"), image()
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), torch.load(file, weights_only=False)]
    for other in copies:
        assert_same_bits("the result", other(x), fast(x))
        assert next(other.parameters()) is next(other.net.parameters())
        assert next(other.parameters()) is not next(net.parameters())
    with torch.no_grad():
        net.model[-2].weight.mul_(2)
    assert not torch.equal(copies[0](x), fast(x))
    assert copy.deepcopy(net)(x).shape == x.shape


def test_gradients_are_refused() -> None:
    net = generator()
    fast = net.fast()
    x = image().requires_grad_()
    with pytest.raises(RuntimeError, match="fast: this module gives no gradients: call the network itself"):
        fast(x)
    with torch.no_grad():
        assert fast(x).shape == x.shape
    assert fast.eval() is fast
    assert net.training


def test_a_part_of_a_network_in_training_stays_in_eval_mode() -> None:
    """A model can hold a generator as a teacher; trainers call ``train()`` on all of it."""
    net = generator(use_dropout=True).eval()
    parent = nn.Sequential(net.fast(), nn.Dropout()).train()
    assert [child.training for child in parent] == [False, True]
    assert not any(module.training for module in net.modules())
    assert_same_bits("eval mode", parent[0](image()), net.fast()(image()))


def test_results_can_be_used_further() -> None:
    fast, weight = generator().fast(), torch.ones(1, requires_grad=True)
    with torch.inference_mode():
        result = fast(image())
    (result * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("change", "precision", "message"),
    [
        (lambda net: net, "fp16", "fast: precision must be fp32 or bf16, got 'fp16'"),
        (lambda net: net, None, "fast: precision must be fp32 or bf16, got None"),
        (
            lambda net: net.half(),
            "fp32",
            r"fast: the weights must be float32, got float16 \(model.1.weight\)",
        ),
        (lambda net: net.double(), "bf16", "fast: the weights must be float32, got float64"),
    ],
)
def test_what_cannot_be_served_is_named(change: Any, precision: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        change(generator()).fast(precision)


def test_a_network_that_changes_later_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    net = generator()
    fast = net.fast("bf16")
    fast(image())
    net.double()
    with pytest.raises(ValueError, match="fast: the weights must be float32, got float64"):
        fast(image())
    net.float().to("meta")
    monkeypatch.setattr(fast_network, "has_bf16", lambda device: device.type != "meta")
    with pytest.raises(
        ValueError, match=r"fast: meta has no bf16 instructions: use fast\(precision='fp32'\)"
    ):
        fast(image())


@pytest.mark.parametrize(
    "x",
    [3, None, torch.zeros(3, 3), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
    ids=["int", "None", "2-D", "4 channels", "uint8"],
)
def test_input_is_refused_as_by_the_network(x: Any) -> None:
    net = generator()
    with pytest.raises((TypeError, ValueError)) as refusal:
        net(x)
    with pytest.raises(type(refusal.value)) as found:
        net.fast()(x)
    assert str(found.value) == str(refusal.value)


def test_an_empty_batch_gives_an_empty_result() -> None:
    assert generator().fast()(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)


def test_it_can_be_traced_compiled_and_transformed() -> None:
    net, x = generator(), image()
    fast = net.fast()
    with pytest.raises(RuntimeError, match=r"fast: call eval\(\) on the network before it is traced"):
        torch.jit.trace(fast, x)
    net.eval()
    torch.compiler.reset()
    calls = [torch.jit.trace(fast, x), torch.compile(fast, backend="eager", fullgraph=True)]
    for call in (*calls, lambda x: torch.func.vmap(fast)(x[None])[0]):
        assert torch.allclose(call(x), fast(x), atol=1e-5)


def test_its_description_shows_the_precision_and_the_layers() -> None:
    text = repr(FastNetwork(generator()))
    assert text.startswith("FastNetwork(\n  precision=fp32\n")
    assert "Conv2d(3, 4" in text
