"""The engine gives the network's own results, with its current weights, whatever happens in between.

On the CPU a stand-in replaces CUDA graphs.
"""

from __future__ import annotations

import copy
import functools
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.devtools.recorded_graph import RecordedGraph
from fastcyclegan.engine import why_not_compiled
from fastcyclegan.inference import network_runner
from fastcyclegan.inference.network_runner import InferenceEngine
from fastcyclegan.nn.chains import Chain
from fastcyclegan.nn.networks import Generator, UnetGenerator, set_impl
from fastcyclegan.testing import assert_same_bits

CHANNELS_LAST = torch.channels_last


def generator(**options: Any) -> Generator:
    """Return a small generator in channels_last, in eval mode, computed by PyTorch's operators."""
    torch.manual_seed(0)
    net = Generator(**{"ngf": 4, "n_blocks": 1, "impl": "reference", **options})
    return net.eval().to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload, no-any-return]


def images(size: int = 16, batch: int = 1, seed: int = 1) -> Tensor:
    made = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return made.contiguous(memory_format=CHANNELS_LAST)


def expected(net: nn.Module, x: Tensor, precision: str = "fp32") -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        result: Tensor = net(x)
    return result


def graphed(net: nn.Module, precision: str = "fp32") -> tuple[InferenceEngine, RecordedGraph]:
    capture = RecordedGraph()
    return InferenceEngine(net, precision, log=pytest.fail, capture=capture), capture


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("build", [generator, lambda: UnetGenerator(num_downs=5, ngf=2).eval()])
def test_results_are_those_of_the_network(
    build: Callable[[], nn.Module], captured: bool, precision: str
) -> None:
    net = build()
    engine = graphed(net, precision)[0] if captured else InferenceEngine(net, precision)
    for seed in range(4):
        x = images(32, 2, seed)
        result = engine(x)
        assert_same_bits("the result", result, expected(net, x, precision))
        assert not result.requires_grad
    assert engine.captured == captured


def _new_data(net: nn.Module) -> None:
    for p in net.parameters():
        p.data = p.data * 1.5


def _set_data(net: nn.Module) -> None:
    for p in net.parameters():
        p.data.mul_(1.5)


def _fused_adam(net: nn.Module) -> None:
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.Adam(net.parameters(), lr=0.1, fused=True).step()


def _load(net: nn.Module) -> None:
    net.load_state_dict({name: 1.5 * value for name, value in net.state_dict().items()})


def _assign(net: nn.Module) -> None:
    net.load_state_dict({name: 1.5 * value for name, value in net.state_dict().items()}, assign=True)


def _replace_layer(net: Any) -> None:
    net.model[1] = nn.Conv2d(3, 4, 7)


def _transpose(net: Any) -> None:
    """Give a weight other values at the same address, with the same shape."""
    weight = net.model[10].conv_block[1].weight
    weight.data = weight.data.transpose(0, 1)


CHANGES: list[Callable[[nn.Module], None]] = [
    _new_data,
    _set_data,
    _fused_adam,
    _load,
    _assign,
    _replace_layer,
    _transpose,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_changed_weights_are_used(
    change: Callable[[nn.Module], None], captured: bool, precision: str
) -> None:
    """After a capture, and also between the first call and the capture."""
    for calls in (1, 3):
        net = generator()
        engine = graphed(net, precision)[0] if captured else InferenceEngine(net, precision)
        x = images()
        for _ in range(calls):
            before = engine(x)
        change(net)
        for _ in range(3):
            result = engine(x)
            assert_same_bits("the result", result, expected(net, x, precision))
        assert not torch.equal(result, before)


def test_working_copies_are_never_out_of_date() -> None:
    """With the kernels, rounded copies of the weights are made in each call, and are not left behind."""
    net, x = Chain(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3)), images(8)
    set_impl(net, "triton")
    engine, capture = graphed(net, "bf16")
    for change in (_set_data, _new_data, _fused_adam):
        for _ in range(2):
            result = engine(x)
        assert engine._prepared is not None
        assert engine._prepared.copies is not None
        change(net)
        truth = expected(copy.deepcopy(net), x, "bf16")
        assert not torch.equal(result, truth)
        assert_same_bits("the network's own result", expected(net, x, "bf16"), truth)
        assert_same_bits("the result", engine(x), truth)
    assert capture.replays > 3


def test_other_modules_settings_and_hooks_are_noticed() -> None:
    net, x = generator(), images()
    engine, _ = graphed(net)
    for _ in range(3):
        engine(x)
    seen: list[int] = []
    handle = net.model[0].register_forward_hook(lambda *_: seen.append(1))
    for _ in range(3):
        engine(x)
    assert (len(seen), engine.captured) == (3, 0)  # a graph would not call the hook
    handle.remove()
    for _ in range(3):
        engine(x)
    assert (len(seen), engine.captured) == (3, 1)
    state = engine._prepared
    set_impl(net, "auto")
    engine(x)
    assert engine._prepared is not state


def test_a_layer_of_someone_else_is_not_captured() -> None:
    """Its forward may depend on more than tensors."""

    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    net, x = generator(), images()
    net.model.append(Counting())
    engine, capture = graphed(net)
    results = [engine(x) for _ in range(3)]
    assert torch.equal(results[2], results[0] * 3)
    assert capture.replays == 0


def test_a_network_that_moves_is_followed() -> None:
    net, x = generator(), images()
    engine, _ = graphed(net)
    for _ in range(3):
        before = engine(x)
    net.to("meta")
    assert engine(x.to("meta")).device.type == "meta"
    net.to_empty(device="cpu").load_state_dict(generator().state_dict())
    for _ in range(3):
        assert_same_bits("the result", engine(x), before)


def test_results_are_not_overwritten_by_later_calls() -> None:
    net = generator()
    engine, _ = graphed(net)
    batches = [images(seed=seed) for seed in range(5)]
    results = [engine(x) for x in batches]
    for x, result in zip(batches, results, strict=True):
        assert_same_bits("the result", result, expected(net, x))


@pytest.mark.parametrize("captured", [False, True])
def test_modes_are_used_and_restored(captured: bool) -> None:
    """The caller's modes do not matter, and those of single modules are restored."""
    net = generator(use_dropout=True).train()
    net.model[1].eval()
    modes = [module.training for module in net.modules()]
    engine = graphed(net)[0] if captured else InferenceEngine(net)
    x = images()
    with torch.inference_mode():
        first = engine(x)
    for _ in range(3):
        result = engine(x)
        assert torch.equal(result, first)
    assert [module.training for module in net.modules()] == modes
    assert not first.is_inference()
    (result * torch.ones(1, requires_grad=True)).sum().backward()
    assert torch.equal(result, expected(net.eval(), x))


@pytest.mark.parametrize("captured", [False, True])
def test_an_error_leaves_the_engine_usable(captured: bool) -> None:
    net = generator().train()
    engine = graphed(net)[0] if captured else InferenceEngine(net)
    for _ in range(2):
        with pytest.raises(ValueError, match="Generator: x must be"):
            engine(torch.zeros(1, 4, 8, 8))
        assert net.training
    for _ in range(3):
        assert_same_bits("the result", engine(images()), expected(net, images()))
    assert engine.captured == captured


@pytest.mark.parametrize("captured", [False, True])
def test_threads_get_their_own_results(captured: bool) -> None:
    net = generator().train()
    engine = graphed(net)[0] if captured else InferenceEngine(net)
    inputs = [images(8 * (1 + n % 2), seed=n) for n in range(4)]
    truth = [expected(net, x) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            if not torch.equal(engine(inputs[number]), truth[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(module.training for module in net.modules())
    assert engine.captured == 2 * captured


def test_the_engine_keeps_no_network_alive_and_releases_its_memory() -> None:
    net = generator()
    engine, _ = graphed(net)
    for _ in range(3):
        engine(images())
    graph = weakref.ref(engine._prepared.graphs)  # type: ignore[union-attr]
    engine.release()
    assert (engine.captured, graph()) == (0, None)  # without a garbage collection
    assert_same_bits("the result", engine(images()), expected(net, images()))
    alive = weakref.ref(net)
    del net
    gc.collect()
    assert alive() is None
    with pytest.raises(ReferenceError, match="the network no longer exists"):
        engine(images())


def test_an_engine_is_freed_without_a_garbage_collection() -> None:
    """It may hold much memory of a GPU."""
    net = generator()
    engine, _ = graphed(net)
    for _ in range(3):
        engine(images())
    alive = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert alive() is None
    finally:
        gc.enable()


def test_an_empty_batch_gives_an_empty_result() -> None:
    net = generator()
    engine, capture = graphed(net)
    for _ in range(3):
        assert engine(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)
    assert engine.captured == capture.replays == 0


def test_a_compiled_network_gives_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a limited number of sizes is compiled, which is logged once, and weights are never frozen."""
    if reason := why_not_compiled(torch.device("cpu")):
        pytest.skip(reason)
    torch.compiler.reset()
    monkeypatch.setattr(network_runner, "MAX_COMPILED", 1)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    net, logged = generator(), list[str]()
    engine = InferenceEngine(net, compiled=True, log=logged.append)
    for size in (8, 8, 12, 16):
        assert torch.allclose(engine(images(size)), expected(net, images(size)), atol=1e-5)
        _set_data(net)
    assert logged == ["more than 1 sizes are not compiled; further sizes run uncompiled"]


def test_a_compiler_that_fails_is_logged_and_the_network_runs_uncompiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def broken(net: nn.Module, **options: object) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            calls.append(1)
            raise RuntimeError("g++ was killed\nmore")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    net, logged = generator(), list[str]()
    engine = InferenceEngine(net, compiled=True, log=logged.append)
    with pytest.raises(ValueError, match="Generator: x must be"):
        engine(torch.zeros(1, 4, 8, 8))
    assert logged == []
    for _ in range(2):
        assert_same_bits("the result", engine(images()), expected(net, images()))
    assert len(calls) == 2
    assert logged == [
        "not compiled: RuntimeError: g++ was killed more; images are translated without torch.compile"
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cuda_graph_gives_the_network_s_images(precision: str) -> None:
    """Sizes alternate, weights change, and two streams use one engine."""
    net = generator(impl="auto").cuda()
    engine = InferenceEngine(net, precision)
    for n in range(12):
        x = images(32 if n % 3 else 64, seed=n).cuda()
        if n % 4 == 3:
            CHANGES[n // 4](net)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            result = engine(x)
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                truth = net(x)
        stream.synchronize()
        assert_same_bits(f"call {n}", result, truth)
    assert engine.captured == 2
