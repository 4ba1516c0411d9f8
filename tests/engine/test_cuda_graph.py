"""Captured iterations give the same results as plain ones, bit for bit.

On the CPU a stand-in replaces CUDA graphs; on a GPU the real ones run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastcyclegan import testing
from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig, OptimConfig
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.recorded_graph import RecordedGraph
from fastcyclegan.engine import Engine, cuda_graph
from fastcyclegan.errors import UserError
from fastcyclegan.recipes.cyclegan import CycleGANRecipe
from fastcyclegan.recipes.recipe import Compile, Inputs, Phase, uncompiled
from fastcyclegan.testing import make_engine, random_batch, seeded_networks

SMALL = ModelConfig(netG="resnet_1blocks", ngf=4, ndf=4, netD="n_layers", n_layers_D=2)
GRAPH, PLAIN = EngineConfig(graph="on"), EngineConfig(graph="off")


def batches(count: int, batch: int = 1, size: int = 16, dtype: torch.dtype = torch.float64) -> list[Batch]:
    """Return ``count`` batches.

    An epoch has 7 samples, so at a batch size of 3 the last batch of an epoch is a partial one.
    """
    plan = Plan(3, 7, 7, batch, numbers=42)
    return [random_batch(size, plan, n, dtype=dtype) for n in range(count)]


def train(engine: Engine, data: Iterable[Batch]) -> Tensor:
    """Run iterations with a learning rate that changes, and return their losses."""
    return torch.stack([engine.step(batch, 1e-4 * (1 + n % 3)) for n, batch in enumerate(data)])


def state(engine: Engine) -> list[Tensor]:
    """Return all tensors that training changes."""
    saved = engine.state_dict()
    return [
        t
        for t in torch.utils._pytree.tree_leaves(
            [saved["nets"], saved["optimizers"], saved["recipe"], saved.get("ema")]
        )
        if isinstance(t, Tensor)
    ]


def assert_same_bits(one: Engine, other: Engine) -> None:
    pairs = list(zip(state(one), state(other), strict=True))
    assert len(pairs) > 50
    for number, pair in enumerate(pairs):
        testing.assert_same_bits(f"tensor {number} of the state", *pair)


def recorded(
    options: EngineConfig = GRAPH, loss: LossConfig = LossConfig(pool_size=4), **settings: Any
) -> tuple[Engine, RecordedGraph]:
    capture = RecordedGraph()
    start = seeded_networks(settings.pop("model", SMALL), dtype=settings.pop("dtype", torch.float64))
    return make_engine(start, loss, options=options, capture=capture, **settings), capture


# (reason, batch size, losses, options, number of iterations without a graph). The pool is empty at first, and
# each batch size warms up for 3 iterations.
RUNS = [
    (
        "the default: pool indices and rates must change after the capture",
        1,
        LossConfig(pool_size=4),
        GRAPH,
        4,
    ),
    ("batch size 3 with a partial last batch: two sizes, two graphs", 3, LossConfig(pool_size=4), GRAPH, 7),
    ("no pool, no identity", 1, LossConfig(pool_size=0, lambda_identity=0, gan_mode="vanilla"), GRAPH, 3),
    ("a gradient penalty, whose mixing is random", 1, LossConfig(gan_mode="wgangp", pool_size=4), GRAPH, 4),
    (
        "augmented images, whose random numbers must change after the capture",
        1,
        LossConfig(pool_size=4, diffaugment="color,translation,cutout"),
        dataclasses.replace(GRAPH, pairing="on"),
        4,
    ),
    ("micro batches", 3, LossConfig(pool_size=4), dataclasses.replace(GRAPH, micro_batch=2), 7),
    (
        "paired, with overlapping phases",
        1,
        LossConfig(pool_size=4),
        dataclasses.replace(GRAPH, pairing="on", overlap="phases"),
        4,
    ),
]


@pytest.mark.parametrize(
    ("why", "batch", "loss", "options", "uncaptured"), RUNS, ids=[row[0] for row in RUNS]
)
def test_replayed_training_equals_plain_training(
    why: str, batch: int, loss: LossConfig, options: EngineConfig, uncaptured: int
) -> None:
    data, optim = batches(24, batch), OptimConfig(ema=0.9)
    engine, capture = recorded(options, loss, optim=optim)
    plain = make_engine(
        seeded_networks(SMALL, dtype=torch.float64),
        loss,
        optim,
        options=dataclasses.replace(options, graph="off"),
    )
    assert torch.equal(train(engine, data), train(plain, data))
    assert_same_bits(engine, plain)
    assert capture.replays == 24 - uncaptured


class Discriminators(CycleGANRecipe):
    """A recipe that trains only the discriminators, with images of the other domain as fakes.

    Generators on interpreted kernels would take half a minute per iteration.
    """

    def phases(self, compile_loss: Compile = uncompiled) -> tuple[Phase, ...]:
        def swapped(inputs: Inputs) -> Inputs:
            return dataclasses.replace(inputs, earlier={"shown_A": inputs.B, "shown_B": inputs.A})

        _, phase = super().phases(compile_loss)
        return (dataclasses.replace(phase, wants=(), prepare=swapped),)


def test_an_iteration_on_the_kernels_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a replay, working copies, gradients in place and paired launches need no decisions by the host."""
    monkeypatch.setattr(cuda_graph, "WARM_UP", 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, capture = batches(4, size=16, dtype=torch.float32), RecordedGraph()
    data = [b.with_images(lambda images: images.to(device)) for b in data]
    engines = []
    for options in (GRAPH, PLAIN):
        nets = seeded_networks(dataclasses.replace(SMALL, impl="triton"))
        arguments = {"capture": capture} if device.type == "cpu" else {}
        engines.append(
            Engine(
                Discriminators(LossConfig(pool_size=0)),
                nets,
                OptimConfig(),
                device,
                options=options,
                **arguments,
            )
        )
    losses = [train(engine, data) for engine in engines]
    assert torch.equal(*losses)
    assert_same_bits(*engines)
    assert engines[0].graphs.captured == 1
    assert engines[0].working_copies
    assert engines[0].phase_optimizers["D"].gradients


class _HostReads(TorchDispatchMode):
    """Records the operators that make the host wait for values from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in (
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::is_nonzero",
            "aten::equal",
            "aten::masked_select",
            "aten::unique",
        ):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [GRAPH, PLAIN], ids=["captured", "plain"])
def test_an_iteration_reads_nothing_back_to_the_host(options: EngineConfig) -> None:
    loss = LossConfig(pool_size=4, diffaugment="color,translation,cutout")
    engine, _ = recorded(options, loss, optim=OptimConfig(ema=0.9))
    data = batches(8)
    train(engine, data[:6])
    with _HostReads() as reads:
        train(engine, data[6:])
        assert reads.names == []
        data[0].A.sum().item()
        assert reads.names == ["aten::_local_scalar_dense"]


def _refusing(step: Callable[[], Tensor]) -> Any:
    step()  # this changes state on the host, which must be reset
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_a_failed_capture_is_logged_and_training_continues() -> None:
    logged: list[str] = []
    start, data = seeded_networks(SMALL), batches(8, dtype=torch.float32)

    class Failing(RecordedGraph):
        def __call__(self, step: Callable[[], Tensor]) -> Any:
            super().__call__(step)  # restores everything
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    engine = make_engine(start, compiled=False, options=GRAPH, capture=Failing(), log=logged.append)
    engine.graphs._required = False
    plain = make_engine(start, options=PLAIN)
    assert torch.equal(train(engine, data), train(plain, data))
    assert_same_bits(engine, plain)
    reason = "RuntimeError: operation not permitted when stream is capturing"
    assert logged == [
        f"no CUDA graph: the iteration cannot be captured ({reason}); training continues without a graph"
    ]
    required = make_engine(start, options=GRAPH, capture=_refusing)
    with pytest.raises(UserError, match=f"--graph on: the iteration cannot be captured: {reason}"):
        train(required, data)


def test_batch_sizes_beyond_the_limit_run_without_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "MAX_GRAPHS", 1)
    logged: list[str] = []
    engine, capture = recorded(log=logged.append)
    plain, _ = recorded(PLAIN)
    data = batches(14, batch=3)
    assert torch.equal(train(engine, data), train(plain, data))
    assert logged == ["there are more than 1 batch sizes; further sizes run without a CUDA graph"]
    assert engine.graphs.captured == 1
    assert capture.replays > 0


def test_pools_with_images_of_several_sizes_run_without_a_graph() -> None:
    logged: list[str] = []
    engine, capture = recorded(log=logged.append)
    plain, _ = recorded(PLAIN)
    data = [random_batch(16 if n < 6 else 20, Plan(3, 7, 7), n, dtype=torch.float64) for n in range(12)]
    assert torch.equal(train(engine, data), train(plain, data))
    assert "no CUDA graph is used while the replay pools contain images of several sizes" in logged
    assert "not batched: D_B gets images of different sizes" in logged
    assert len(logged) == len(set(logged))
    assert capture.replays == 2


def test_freezing_or_hooks_after_a_capture_need_another_graph() -> None:
    """After a weight is frozen or a hook is added, the captured iteration is no longer valid."""
    engine, _ = recorded()
    plain, _ = recorded(PLAIN)
    data = batches(10)
    hook_calls: list[int] = []
    for n, batch in enumerate(data):
        if n == 6:
            for one in (engine, plain):
                next(one.nets["G_AB"].parameters()).requires_grad_(False)
                one.nets["D_A"].register_forward_hook(lambda *args: hook_calls.append(1))
        assert torch.equal(engine.step(batch, 1e-4), plain.step(batch, 1e-4))
    assert_same_bits(engine, plain)
    assert len(hook_calls) > 10
    assert engine.graphs.captured == 2


def test_graphs_use_a_state_that_was_loaded() -> None:
    data = batches(14)
    engine, _ = recorded()
    train(engine, data[:6])
    saved = torch.utils._pytree.tree_map(
        lambda x: x.clone() if isinstance(x, Tensor) else x, engine.state_dict()
    )
    expected = train(engine, data[6:])
    other, capture = recorded()
    train(other, data[:7])
    other.load_state_dict(saved)
    assert torch.equal(train(other, data[6:]), expected)
    assert_same_bits(engine, other)
    assert capture.replays > 0


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", ["off", "wgrad", "phases"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_cuda_graph_trains_like_plain_launches(precision: str, overlap: str) -> None:
    """200 iterations give the same bits. Our kernels are deterministic, and cuDNN is configured to be."""
    torch.backends.cudnn.deterministic = True
    try:
        start = seeded_networks(dataclasses.replace(SMALL, ngf=16, ndf=16))
        engines = [
            make_engine(
                start, device="cuda", precision=precision, options=EngineConfig(graph=g, overlap=overlap)
            )
            for g in ("on", "off")
        ]
        for n in range(200):
            batch = random_batch(32, Plan(3, 7, 7), n)
            losses = [engine.step(batch.with_images(Tensor.cuda), 2e-4) for engine in engines]
            testing.assert_same_bits(f"losses of iteration {n + 1}", *losses)
        assert_same_bits(*engines)
        assert engines[0].graphs.captured == 1
    finally:
        torch.backends.cudnn.deterministic = False


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [EngineConfig(graph="on"), EngineConfig(graph="off")], ids=["captured", "plain"]
)
def test_no_iteration_waits_for_the_gpu(options: EngineConfig) -> None:
    loss = LossConfig(diffaugment="color,translation,cutout")
    engine = make_engine(seeded_networks(SMALL), loss, device="cuda", precision="bf16", options=options)
    data = [
        dataclasses.replace(b, A=b.A.cuda(), B=b.B.cuda()) for b in batches(12, size=32, dtype=torch.float32)
    ]
    train(engine, data[:8])
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(engine, data[8:])
    finally:
        torch.cuda.set_sync_debug_mode("default")
