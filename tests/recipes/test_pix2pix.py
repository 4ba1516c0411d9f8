"""Iterations of pix2pix equal the official ones in float64, and captured ones draw new dropout masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.baselines import plain_networks
from bench.official_order import OfficialPix2Pix
from bench.parity import Judge, require
from bench.providers import train_step
from fastcyclegan.config import EngineConfig, TrainConfig, default_config, with_changes
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.recorded_graph import RecordedGraph
from fastcyclegan.engine import Engine
from fastcyclegan.engine.batching import NetworkCalls
from fastcyclegan.recipes.pix2pix import Pix2PixRecipe
from fastcyclegan.recipes.recipe import Inputs, Phase, PhaseResult
from fastcyclegan.testing import assert_same_bits, is_cancelled_bias, random_batch, relative_error

LR = 2e-4
SMALL = {"netG": "unet_32", "ngf": 4, "ndf": 4}
# The smallest U-Net with a layer of dropout.
DROPOUT = {"netG": "unet_64", "ngf": 4, "ndf": 4, "no_dropout": False}
EXACT = 1e-9


def config_of(model: Mapping[str, Any] = {}, loss: Mapping[str, Any] = {}) -> TrainConfig:
    model = {**SMALL, "no_dropout": True, **model}
    return with_changes(default_config("pix2pix"), {"model": model, "loss": loss})


def networks(config: TrainConfig, dtype: torch.dtype = torch.float64) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: net.to(dtype) for name, net in config.make_recipe().build_networks().items()}


def engine_of(
    config: TrainConfig,
    options: EngineConfig = EngineConfig(),
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    **more: Any,
) -> Engine:
    recipe, nets = config.make_recipe(), networks(config, dtype)
    return Engine(recipe, nets, config.optim, torch.device(device), options=options, **more)


def official_of(config: TrainConfig) -> OfficialPix2Pix:
    loss: Any = config.loss
    plain = plain_networks(config)
    for net in plain.values():
        # PyTorch draws a dropout mask in the order of the memory, which is that of the engine's images.
        net.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    gp = loss.lambda_gp if loss.gan_mode == "wgangp" else 0.0
    return OfficialPix2Pix(
        plain["G"], plain["D"], gan_mode=loss.gan_mode, lambda_L1=loss.lambda_L1, lr=LR, lambda_gp=gp
    )


def batches(
    config: TrainConfig, count: int, batch: int = 1, dtype: torch.dtype = torch.float64
) -> list[Batch]:
    """Return ``count`` batches. An epoch has 7 samples, so with 3 in a batch, some are partial."""
    model: Any = config.model
    plan, side = Plan(3, 7, 7, batch, paired=True), max(32, model.size_multiple)
    channels = (model.input_nc, model.output_nc)
    return [random_batch(side, plan, n, channels, dtype) for n in range(count)]


def run_official(model: OfficialPix2Pix, data: Sequence[Batch], seed: int = 0) -> list[dict[str, float]]:
    """Run an iteration on each batch, each with random numbers of its own, and return their losses."""
    history = []
    for n, batch in enumerate(data):
        torch.manual_seed(seed + n)
        model.set_input(batch.A, batch.B, torch.tensor([sample.mix_B for sample in batch.samples]))
        model.optimize_parameters()
        history.append({name: torch.as_tensor(value).item() for name, value in model.losses().items()})
    return history


def run_engine(engine: Engine, data: Sequence[Batch], seed: int = 0) -> list[dict[str, float]]:
    history = []
    for n, batch in enumerate(data):
        torch.manual_seed(seed + n)
        losses = engine.step(batch, LR).tolist()
        history.append(dict(zip(engine.recipe.loss_names, losses, strict=True)))
    return history


def largest_error(
    ours: Sequence[Mapping[str, float]], nets: Mapping[str, nn.Module],
    expected: Sequence[Mapping[str, float]], official: OfficialPix2Pix,
) -> float:  # fmt: skip
    """Return the largest relative difference of any loss, weight or running statistic."""
    errors = [0.0]
    for one, other in zip(ours, expected, strict=True):
        for name, value in one.items():
            # Without its weight, the penalty is 0 on both sides.
            scale = abs(other[name]) if other[name] else 1.0
            errors.append(abs(value - other[name]) / scale)
    for net, plain in ((nets["G"], official.netG), (nets["D"], official.netD)):
        state = net.state_dict()
        for key, value in plain.state_dict().items():
            if not is_cancelled_bias(plain, key):
                errors.append(relative_error(state[key], value))
    return max(errors)


def state(engine: Engine) -> dict[str, Tensor]:
    """Return all tensors that training changes, by name."""
    saved = engine.state_dict()
    leaves = torch.utils._pytree.tree_leaves_with_path([saved["nets"], saved["optimizers"]])
    return {str(path): value for path, value in leaves if isinstance(value, Tensor)}


def assert_same_state(one: Engine, other: Engine) -> None:
    for name, value in state(one).items():
        assert_same_bits(name, value, state(other)[name])


def difference(
    config: TrainConfig, count: int, batch: int, options: EngineConfig = EngineConfig(), seed: int = 0
) -> float:
    """Return the largest relative difference between the engine and the official code after ``count``
    iterations. ``seed`` is that of the engine's dropout masks; the official ones come from seed 0.
    """
    data, engine, official = batches(config, count, batch), engine_of(config, options), official_of(config)
    expected = run_official(official, data)
    return largest_error(run_engine(engine, data, seed), engine.nets, expected, official)


# --- Equal to the official iteration ------------------------------------------------------------------------

# (reason, networks, losses, batch size, iterations). In float64, PyTorch's operators compute all networks.
CASES: list[tuple[str, dict[str, Any], dict[str, Any], int, int]] = [
    ("the default: batch norm, cross entropy", {}, {}, 1, 20),
    ("batch norm mixes the images of a batch", {}, {}, 3, 20),
    ("instance norm: real and fake in one batch", {"norm": "instance"}, {}, 1, 20),
    ("instance norm, batch size 3", {"norm": "instance"}, {"gan_mode": "lsgan"}, 3, 20),
    ("batch norm, least squares", {}, {"gan_mode": "lsgan"}, 1, 3),
    ("no norm", {"norm": "none"}, {}, 1, 3),
    ("a ResNet generator", {"netG": "resnet_1blocks"}, {"gan_mode": "lsgan"}, 3, 3),
    (
        "a ResNet generator with instance norm, a pixel discriminator",
        {"netG": "resnet_1blocks", "norm": "instance", "netD": "pixel"},
        {},
        1,
        3,
    ),
    ("1 channel to 2, another weight of L1", {"input_nc": 1, "output_nc": 2}, {"lambda_L1": 7.0}, 1, 3),
    (
        "the official wgangp, without a penalty",
        {"norm": "instance"},
        {"gan_mode": "wgangp", "lambda_gp": 0.0},
        1,
        3,
    ),
    ("a gradient penalty", {"norm": "instance"}, {"gan_mode": "wgangp"}, 3, 20),
    ("a gradient penalty with batch norm", {}, {"gan_mode": "wgangp", "lambda_gp": 3.0}, 3, 3),
    ("dropout in a U-Net", DROPOUT, {}, 1, 20),
    ("dropout in a U-Net, instance norm, batch size 3", {**DROPOUT, "norm": "instance"}, {}, 3, 3),
    ("dropout in a ResNet", {"netG": "resnet_2blocks", "no_dropout": False}, {}, 3, 3),
]


@pytest.mark.parametrize(("why", "model", "loss", "batch", "count"), CASES, ids=[case[0] for case in CASES])
def test_iterations_equal_the_official_ones(
    why: str, model: dict[str, Any], loss: dict[str, Any], batch: int, count: int
) -> None:
    config = config_of(model, loss)
    assert difference(config, 1, batch) < EXACT
    assert difference(config, count, batch) < EXACT


@pytest.mark.parametrize("model", [DROPOUT, {"netG": "resnet_1blocks", "no_dropout": False}])
def test_other_dropout_masks_are_noticed(model: dict[str, Any]) -> None:
    config = config_of(model)
    assert difference(config, 1, 1) < EXACT
    assert difference(config, 1, 1, seed=1) > 1e-3


def test_micro_batches_equal_whole_batches() -> None:
    """Batches of 3, and a partial one, are run in parts of 2."""
    config = config_of({"norm": "instance"}, {"gan_mode": "wgangp"})
    assert difference(config, 4, 3, EngineConfig(micro_batch=2)) < EXACT


class OldDiscriminator(Pix2PixRecipe):
    """Trains G before D, as CycleGAN does: G sees what D says before its update."""

    def phases(self, *arguments: Any) -> tuple[Phase, ...]:
        translate, D, G = super().phases(*arguments)
        return translate, G, D


class WholeGradient(Pix2PixRecipe):
    """Does not halve the losses of D, as the authors' first code. Adam hides this, except for its eps."""

    def phases(self, *arguments: Any) -> tuple[Phase, ...]:
        return tuple(dataclasses.replace(phase, factor=1.0) for phase in super().phases(*arguments))


class RealFirst(Pix2PixRecipe):
    """Judges the real pairs before the generated ones, which changes the running statistics alone."""

    def _discriminator(self, losses: Any, forward: Any, inputs: Inputs) -> PhaseResult:
        real = torch.cat([inputs.A, inputs.B], 1)
        fake = torch.cat([inputs.A, inputs.earlier["fake_B"].detach()], 1)
        judged = forward({"D": [real, fake]})["D"]
        return PhaseResult(losses.adversarial(judged[::-1], [False, True]))


@pytest.mark.parametrize("recipe", [OldDiscriminator, WholeGradient, RealFirst])
def test_another_order_is_noticed(recipe: type[Pix2PixRecipe]) -> None:
    config = config_of()
    data, official = batches(config, 2, 2), official_of(config)
    expected = run_official(official, data)
    engine = Engine(
        recipe(config.loss, config.model),  # type: ignore[arg-type]
        networks(config),
        config.optim,
        torch.device("cpu"),
    )
    assert largest_error(run_engine(engine, data), engine.nets, expected, official) > 1e3 * EXACT


# --- How often the networks are called ----------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["cpp", "reference"])
def test_each_batch_norm_sees_fake_real_and_fake_pairs_one_after_another(impl: str) -> None:
    config = config_of({"impl": impl})
    engine = engine_of(config, dtype=torch.float32)
    for batch in batches(config, 2, 3, torch.float32):
        engine.step(batch, LR)
    for name, calls in (("G", 1), ("D", 3)):
        norms = [module for module in engine.nets[name].modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms
        assert {int(norm.num_batches_tracked) for norm in norms} == {2 * calls}


@pytest.mark.parametrize(("norm", "sizes"), [("batch", []), ("instance", [6]), ("none", [6])])
def test_real_and_fake_pairs_share_a_batch_only_without_batch_norm(
    norm: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []  # without the calls of a network by itself, which the test above counts
    call = NetworkCalls.call

    def recorded(self: NetworkCalls, name: str, x: Tensor) -> Tensor:
        seen.append(len(x))
        return call(self, name, x)

    monkeypatch.setattr(NetworkCalls, "call", recorded)
    config = config_of({"norm": norm})
    engine_of(config).step(batches(config, 1, 3)[0], LR)
    assert seen == sizes


# --- Kernels ------------------------------------------------------------------------------------------------

KERNELS = [
    ("batch norm", {}),
    ("instance norm", {"norm": "instance"}),
    ("a ResNet generator", {"netG": "resnet_1blocks", "norm": "instance"}),
]


@pytest.mark.parametrize("impl", ["auto", "cpp"])
@pytest.mark.parametrize(("why", "model"), KERNELS, ids=[case[0] for case in KERNELS])
def test_kernels_of_a_processor_are_as_close_to_float64_as_pytorch(
    why: str, model: dict[str, Any], impl: str
) -> None:
    config = config_of({**model, "impl": impl})
    data = batches(config, 2, 2, torch.float32)
    judge = Judge(plain_networks(config), data, "cpu", config)
    require(why, judge.judge("ours", train_step("ours", judge.nets, "cpu", config)))


# --- Captured iterations ------------------------------------------------------------------------------------

CAPTURED = [
    ("dropout and batch norm", DROPOUT, {}, 3),
    ("a ResNet with dropout", {"netG": "resnet_1blocks", "no_dropout": False}, {}, 1),
    ("a gradient penalty", {"norm": "instance"}, {"gan_mode": "wgangp"}, 3),
]


@pytest.mark.parametrize(("why", "model", "loss", "batch"), CAPTURED, ids=[case[0] for case in CAPTURED])
def test_replayed_iterations_equal_plain_ones(
    why: str, model: dict[str, Any], loss: dict[str, Any], batch: int
) -> None:
    """Random numbers must be drawn again in a replay, in the same order."""
    config = config_of(model, loss)
    data, capture = batches(config, 8, batch), RecordedGraph()
    engine = engine_of(config, EngineConfig(graph="on"), capture=capture)
    plain = engine_of(config, EngineConfig(graph="off"))
    assert run_engine(engine, data) == run_engine(plain, data)
    assert capture.replays > 0
    assert_same_state(engine, plain)


def test_each_replay_draws_new_dropout_masks() -> None:
    """With a learning rate of 0 and one batch, nothing else differs between two iterations."""
    config, capture = config_of(DROPOUT), RecordedGraph()
    engine = engine_of(config, EngineConfig(graph="on"), capture=capture)
    (batch,) = batches(config, 1)
    distances = [engine.step(batch, 0.0)[engine.recipe.loss_names.index("G_L1")].item() for _ in range(8)]
    assert capture.replays > 2
    assert len(set(distances)) == 8


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_cuda_graph_of_pix2pix_trains_like_plain_launches(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout and batch norm, 50 iterations give the same bits."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    config = config_of({**DROPOUT, "ngf": 16, "ndf": 16})
    data = [batch.with_images(Tensor.cuda) for batch in batches(config, 50, 3, torch.float32)]
    engines = [
        engine_of(config, EngineConfig(graph=graph), torch.float32, "cuda", precision=precision)
        for graph in ("on", "off")
    ]
    captured, plain = (run_engine(engine, data) for engine in engines)
    assert captured == plain
    assert_same_state(*engines)
    graphs = engines[0].graphs
    assert graphs is not None
    assert graphs.captured == 2
