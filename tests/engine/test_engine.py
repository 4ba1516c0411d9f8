"""The engine's iteration against the official order and the reference, float64, and what it leaves behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from bench.official_order import OfficialCycleGAN
from fastcyclegan import reference as ref
from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import Engine, why_not_compiled
from fastcyclegan.testing import (
    assert_parity,
    copy_of,
    is_cancelled_bias,
    make_engine,
    random_batch,
    relative_error,
    seeded_networks,
)

SMALL = ModelConfig(netG="resnet_1blocks", ngf=4, ndf=4, netD="n_layers", n_layers_D=2)
LR = 2e-4


class Decided:
    """Python's ``random`` for the official pool, answering with what the plan drew."""

    def __init__(self) -> None:
        self.draws: list[tuple[float, float]] = []
        self.place = 0.0

    def uniform(self, a: float, b: float) -> float:
        swap, self.place = self.draws.pop(0)
        return 1 - swap  # the official code swaps above one half, the plan below it

    def randint(self, a: int, b: int) -> int:
        return int(self.place * (b + 1))


def run_official(
    nets: dict[str, torch.nn.Module], batches: Sequence[Any], loss: LossConfig
) -> list[dict[str, float]]:
    chance = {"A": Decided(), "B": Decided()}
    model = OfficialCycleGAN(
        *(nets[name] for name in ("G_AB", "G_BA", "D_B", "D_A")),
        gan_mode=loss.gan_mode, lambda_A=loss.lambda_A, lambda_B=loss.lambda_B,
        lambda_identity=loss.lambda_identity,
        pool_size=loss.pool_size, lr=LR, chance_A=chance["A"], chance_B=chance["B"],
    )  # fmt: skip
    history, seen = [], 0
    for batch in batches:
        # The official pool asks chance only once it is full.
        asked = [n for n in range(len(batch.samples)) if seen + n >= loss.pool_size]
        chance["A"].draws = [batch.samples[n].draw_A for n in asked]
        chance["B"].draws = [batch.samples[n].draw_B for n in asked]
        model.set_input(batch.A.contiguous(), batch.B.contiguous())
        model.optimize_parameters()
        seen += len(batch.samples)
        history.append({name: torch.as_tensor(value).item() for name, value in model.losses().items()})
    return history


def run_reference(
    nets: dict[str, torch.nn.Module], batches: Sequence[Any], loss: LossConfig
) -> list[dict[str, float]]:
    optimizers = {
        "G": torch.optim.Adam([*nets["G_AB"].parameters(), *nets["G_BA"].parameters()], LR, (0.5, 0.999)),
        "D": torch.optim.Adam([*nets["D_A"].parameters(), *nets["D_B"].parameters()], LR, (0.5, 0.999)),
    }
    pools = {side: ref.ReplayPool(loss.pool_size) for side in "AB"}
    weights = ref.LossWeights(
        loss.gan_mode, loss.lambda_A, loss.lambda_B, loss.lambda_identity, loss.lambda_gp
    )
    history = []
    for batch in batches:
        draws = {"A": [s.draw_A for s in batch.samples], "B": [s.draw_B for s in batch.samples]}
        mix = {
            "A": torch.tensor([s.mix_A for s in batch.samples]),
            "B": torch.tensor([s.mix_B for s in batch.samples]),
        }
        losses = ref.train_step(nets, optimizers, pools, batch.A, batch.B, draws, weights, mix)
        history.append({name: value.item() for name, value in losses.items()})
    return history


def run_engine(engine: Engine, batches: Sequence[Any]) -> list[dict[str, float]]:
    return [
        dict(zip(engine.recipe.loss_names, engine.step(batch, LR).tolist(), strict=True)) for batch in batches
    ]


def assert_same_weights(ours: Any, theirs: Any, limit: float) -> None:
    for name, net in theirs.items():
        for key, value in net.state_dict().items():
            if not is_cancelled_bias(net, key):
                assert relative_error(ours[name].state_dict()[key], value) < limit, (name, key)


PLAIN, PAIRED = EngineConfig(batching="off", pairing="off"), EngineConfig(pairing="on")
PHASES = EngineConfig(pairing="on", overlap="phases")
# (why, losses, networks, batch, engines): 20 iterations in float64, with pools of 4 that fill on the way.
STEPS: list[tuple[str, LossConfig, dict[str, Any], int, list[EngineConfig]]] = [
    (
        "the default: pass by pass, batched, paired",
        LossConfig(pool_size=4),
        {},
        1,
        [PLAIN, EngineConfig(), PAIRED],
    ),
    (
        "batch 3, pool of 4: draws what its own query stored; a partial last batch",
        LossConfig(pool_size=4),
        {},
        3,
        [EngineConfig(), PAIRED],
    ),
    (
        "no identity passes: stages of one picture each",
        LossConfig(pool_size=4, lambda_identity=0),
        {},
        1,
        [PAIRED],
    ),
    ("no identity passes, batch 3", LossConfig(pool_size=4, lambda_identity=0), {}, 3, [PAIRED]),
    (
        "unequal weights would hide swapped sides if equal",
        LossConfig(pool_size=0, lambda_A=7, lambda_B=13, lambda_identity=0.3),
        {},
        1,
        [PAIRED],
    ),
    ("cross entropy, a pool that is never full", LossConfig(gan_mode="vanilla"), {}, 3, [PAIRED]),
    (
        "cross entropy, no identity, batch 1",
        LossConfig(gan_mode="vanilla", pool_size=4, lambda_identity=0),
        {},
        1,
        [PAIRED],
    ),
    (
        "the official wgangp: no penalty",
        LossConfig(gan_mode="wgangp", pool_size=4, lambda_gp=0),
        {},
        1,
        [PAIRED],
    ),
    (
        "the same, batch 3, no identity",
        LossConfig(gan_mode="wgangp", pool_size=4, lambda_gp=0, lambda_identity=0),
        {},
        3,
        [PAIRED],
    ),
    (
        "batch norm couples the pictures of a batch: official order",
        LossConfig(pool_size=4),
        {"norm": "batch"},
        2,
        [PAIRED],
    ),
    (
        "channels differ, no identity: pairs fall apart",
        LossConfig(pool_size=4, lambda_identity=0),
        {"input_nc": 1},
        1,
        [PAIRED],
    ),
    (
        "pixel discriminator, resize upsampling",
        LossConfig(pool_size=4),
        {"netD": "pixel", "upsample": "resize"},
        1,
        [PAIRED],
    ),
    (
        "parts of 2 of a batch of 3, the phases in another order",
        LossConfig(pool_size=4),
        {},
        3,
        [EngineConfig(micro_batch=2), PHASES],
    ),
]


@pytest.mark.parametrize(("why", "loss", "changes", "batch", "engines"), STEPS, ids=[row[0] for row in STEPS])
def test_engine_equals_reference_equals_official(
    why: str, loss: LossConfig, changes: dict[str, Any], batch: int, engines: list[EngineConfig]
) -> None:
    model = ModelConfig(**{**SMALL.__dict__, **changes})
    plan = Plan(3, 8, 7, batch)
    batches = [random_batch(16, plan, n, (model.input_nc, model.output_nc), torch.float64) for n in range(20)]
    start = seeded_networks(model, dtype=torch.float64)
    official, reference = copy_of(start), copy_of(start)
    found = [(run_reference(reference, batches, loss), reference)]
    for options in engines:
        engine = make_engine(start, loss, options=options)
        found.append((run_engine(engine, batches), engine.nets))
    expected = run_official(official, batches, loss)
    for history, nets in found:
        for n in range(len(batches)):
            for name, value in expected[n].items():
                # float64 reordered: rounding grows over 20 iterations, and stays below 1e-9 (the project's
                # promise).
                assert history[n].get(name, 0.0) == pytest.approx(value, rel=1e-9, abs=1e-12), (n, name)
        assert_same_weights(nets, official, 1e-9)
    pictures = batches[-1].A
    with torch.no_grad():
        for _, nets in found:
            assert relative_error(nets["G_AB"](pictures), official["G_AB"](pictures)) < 1e-9


@pytest.mark.parametrize(("batch", "identity"), [(1, 0.5), (3, 0.0)])
def test_wgangp_with_its_penalty_equals_the_reference(batch: int, identity: float) -> None:
    loss = LossConfig(gan_mode="wgangp", pool_size=3, lambda_identity=identity)
    batches = [random_batch(16, Plan(0, 9, 9, batch), n, dtype=torch.float64) for n in range(20)]
    start = seeded_networks(SMALL, dtype=torch.float64)
    reference, engine = copy_of(start), make_engine(start, loss, options=PAIRED)
    expected, found = run_reference(reference, batches, loss), run_engine(engine, batches)
    assert all(f == pytest.approx(e, rel=1e-9) for e, f in zip(expected, found, strict=True))
    assert_same_weights(engine.nets, reference, 1e-9)


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_losses_by_the_parity_rule(compiled: bool) -> None:
    """The engine in bf16 errs at most twice as much as the reference under autocast does."""
    if compiled and (reason := why_not_compiled(torch.device("cpu"))):
        pytest.skip(reason)
    start, loss = seeded_networks(SMALL), LossConfig()
    batches = [random_batch(32, Plan(0, 9, 9), n) for n in range(1)]
    engine = make_engine(start, loss, precision="bf16", compiled=compiled)
    with torch.autocast("cpu", torch.bfloat16):
        yardstick = run_reference(copy_of(start), batches, loss)
    truth = run_reference(
        copy_of(start, torch.float64), [random_batch(32, Plan(0, 9, 9), 0, dtype=torch.float64)], loss
    )
    ours = run_engine(engine, batches)
    for name in engine.recipe.loss_names:
        values = (
            torch.tensor([history[0][name]], dtype=torch.float64) for history in (ours, yardstick, truth)
        )
        assert_parity(name, *values, dtype=torch.bfloat16)


def gradients(engine: Engine, batch: Any) -> dict[tuple[str, str], torch.Tensor]:
    """Run one iteration and return the gradient that each optimizer was given for each parameter."""
    names = {id(p): (net, key) for net, module in engine.nets.items() for key, p in module.named_parameters()}
    found: dict[tuple[str, str], torch.Tensor] = {}

    def keep(optimizer: torch.optim.Optimizer, *_: object) -> None:
        found.update(
            {names[id(p)]: p.grad.clone() for group in optimizer.param_groups for p in group["params"]}
        )

    for optimizer in engine.optimizers.values():
        optimizer.register_step_pre_hook(keep)
    engine.step(batch, LR)
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_gradient_of_the_compiled_step_by_the_parity_rule(precision: str) -> None:
    """Compiled against uncompiled in the same precision, both against float64 (where the uncompiled step
    equals the official one).

    The weights and biases of a layer in both networks of a side are held as one vector: a bias of 3 numbers
    by itself is a matter of luck.
    """
    if reason := why_not_compiled(torch.device("cpu")):
        pytest.skip(reason)
    start, plan = seeded_networks(SMALL), Plan(0, 9, 9)
    loss = LossConfig()
    batch, exact = (random_batch(32, plan, 0, dtype=dtype) for dtype in (torch.float32, torch.float64))
    truth = gradients(make_engine(copy_of(start, torch.float64), loss), exact)
    yardstick = gradients(make_engine(start, loss, precision=precision), batch)
    engine = make_engine(start, loss, precision=precision, compiled=True)
    ours = dict(gradients(engine, batch))  # what it found first: it goes on looking
    compiled = counters["stats"]["unique_graphs"]
    run_engine(engine, [random_batch(32, plan, n) for n in range(1, 4)])
    assert (
        counters["stats"]["unique_graphs"] == compiled > 0
    )  # nothing is compiled again after the first iteration
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    layers: dict[str, list[tuple[str, str]]] = {}
    for net, key in truth:
        if not is_cancelled_bias(start[net], key):
            layers.setdefault(f"{net[0]}.{key.rpartition('.')[0]}", []).append((net, key))
    assert len(layers) > 10
    for layer, keys in layers.items():
        assert_parity(
            layer, *(torch.cat([of[key].flatten() for key in keys]) for of in (ours, yardstick, truth)), dtype
        )


def test_what_is_compiled_for_a_processor_sees_one_picture_at_a_time() -> None:
    """Of two at once torch 2.13 makes gradients that are not numbers, in bf16 and from 3 blocks on: minutes
    of compiling to see.
    """
    seen: list[int] = []
    start = seeded_networks(SMALL, dtype=torch.float64)
    engine, plain = make_engine(start, compiled=True), make_engine(start)
    for name, net in engine.nets.items():
        engine.calls.called[name] = lambda x, net=net: (
            seen.append(len(x)) or net(x)
        )  # the network itself, and no compiler
    batch = random_batch(16, Plan(0, 9, 9, 3), 0, dtype=torch.float64)
    assert relative_error(engine.step(batch, LR), plain.step(batch, LR)) < 1e-9
    assert set(seen) == {1}
    assert len(seen) == 3 * (3 * 2 + 2 + 4)
    assert "one by one" in engine.describe()["batching"]


def test_compiled_wgangp_trains() -> None:
    """torch.compile cannot differentiate twice, so the discriminators stay uncompiled, and the table says
    so."""
    if reason := why_not_compiled(torch.device("cpu")):
        pytest.skip(reason)
    # Generators without blocks: what is compiled here is compiled whole elsewhere.
    start = seeded_networks(dataclasses.replace(SMALL, netG="resnet_0blocks"))
    loss, plan = LossConfig(gan_mode="wgangp", lambda_identity=0), Plan(0, 9, 9)
    engine = make_engine(start, loss, compiled=True)
    truth = run_reference(
        copy_of(start, torch.float64), [random_batch(16, plan, 0, dtype=torch.float64)], loss
    )[0]
    yardstick = run_reference(copy_of(start), [random_batch(16, plan, 0)], loss)[0]
    ours = run_engine(engine, [random_batch(16, plan, 0)])[0]
    values = (
        torch.tensor([losses[name] for name in engine.recipe.loss_names])
        for losses in (ours, yardstick, truth)
    )
    assert_parity("losses", *values, dtype=torch.float32)
    assert "D_A D_B" in engine.describe()["compiled"]


def test_step_leaves_no_gradients_and_thaws_the_discriminators() -> None:
    engine = make_engine(seeded_networks(SMALL))
    frozen = next(engine.nets["D_A"].parameters())
    frozen.requires_grad_(False)
    before = frozen.clone()
    engine.step(random_batch(16, Plan(0, 9, 9), 0), LR)
    assert all(p.grad is None for net in engine.nets.values() for p in net.parameters())
    thawed = [p.requires_grad for name in ("D_A", "D_B") for p in engine.nets[name].parameters()]
    assert thawed.count(False) == 1  # the one that the user froze
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("options", [EngineConfig(), PHASES])
@pytest.mark.parametrize("sides", [("G_AB", "G_BA"), ("D_A", "D_B")])
def test_a_phase_whose_networks_are_all_frozen_trains_nothing(
    sides: tuple[str, str], options: EngineConfig
) -> None:
    engine = make_engine(seeded_networks(SMALL), options=options)
    for name in sides:
        engine.nets[name].requires_grad_(False)
    before = copy_of(engine.nets)
    losses = engine.step(random_batch(16, Plan(0, 9, 9), 0), LR)
    assert losses.isfinite().all()
    for name, net in engine.nets.items():
        same = all(
            torch.equal(a, b) for a, b in zip(net.parameters(), before[name].parameters(), strict=True)
        )
        assert same == (name in sides)


def test_what_an_engine_cannot_do_is_an_error() -> None:
    nets = seeded_networks(SMALL)
    with pytest.raises(ValueError, match="precision must be fp32 or bf16, got 'fp16'"):
        make_engine(nets, precision="fp16")
    with pytest.raises(ValueError, match="graph='on' needs a CUDA GPU"):
        make_engine(nets, options=EngineConfig(graph="on"))
    batch_norm = seeded_networks(dataclasses.replace(SMALL, norm="batch"))
    with pytest.raises(
        ValueError, match=r"micro_batch would change the result: G_AB.model.2 is a batch norm"
    ):
        make_engine(batch_norm, options=EngineConfig(micro_batch=1))
    engine = make_engine(nets)
    engine.nets["G_AB"].model[4] = torch.nn.Conv2d(4, 8, 3, stride=2, padding=1)
    with pytest.raises(ValueError, match="other parameters than when the engine was made: make a new one"):
        engine.step(random_batch(16, Plan(0, 9, 9), 0), LR)


def test_translate_is_in_eval_mode_and_restores_the_training_mode() -> None:
    engine = make_engine(seeded_networks(ModelConfig(**{**SMALL.__dict__, "use_dropout": True})))
    images = random_batch(16, Plan(0, 9, 9), 0).A
    assert torch.equal(engine.translate("G_AB", images), engine.translate("G_AB", images))
    assert engine.nets["G_AB"].training
    assert all(m.training for m in engine.nets["G_AB"].modules())


def test_state_continues_bit_for_bit() -> None:
    """Dropout included: the random state is part of the state."""
    model = ModelConfig(**{**SMALL.__dict__, "use_dropout": True})
    batches = [random_batch(16, Plan(0, 5, 5, 2), n) for n in range(8)]
    torch.manual_seed(1)
    engine = make_engine(seeded_networks(model), LossConfig(pool_size=3))
    run_engine(engine, batches[:4])
    state = torch.utils._pytree.tree_map(
        lambda x: x.clone() if isinstance(x, torch.Tensor) else x, engine.state_dict()
    )
    expected = run_engine(engine, batches[4:])
    other = make_engine(seeded_networks(model, seed=9), LossConfig(pool_size=3))
    other.load_state_dict(state)
    assert run_engine(other, batches[4:]) == expected
    for name, net in engine.nets.items():
        assert all(torch.equal(v, other.nets[name].state_dict()[k]) for k, v in net.state_dict().items())


@pytest.mark.gpu
def test_bf16_on_the_gpu_by_the_parity_rule() -> None:
    start, loss = seeded_networks(ModelConfig()), LossConfig()
    batch, exact = (
        random_batch(256, Plan(0, 9, 9), 0, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    on_gpu = type(batch)(batch.A.cuda(), batch.B.cuda(), batch.paths_A, batch.paths_B, batch.samples)
    with torch.autocast("cuda", torch.bfloat16):
        yardstick = run_reference({name: net.cuda() for name, net in copy_of(start).items()}, [on_gpu], loss)
    truth = run_reference(copy_of(start, torch.float64), [exact], loss)
    for compiled in (False, True):
        engine = make_engine(start, loss, device="cuda", precision="bf16", compiled=compiled)
        ours = run_engine(engine, [on_gpu])
        for name in engine.recipe.loss_names:
            values = (
                torch.tensor([history[0][name]], dtype=torch.float64) for history in (ours, yardstick, truth)
            )
            assert_parity(name, *values, dtype=torch.bfloat16)


@pytest.mark.parametrize("gan_mode", ["lsgan", "wgangp"])
def test_an_iteration_on_the_kernels(gan_mode: Any) -> None:
    """The losses of an iteration as with the reference; a gradient penalty is differentiated twice, so its
    networks stay with PyTorch.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan, loss = Plan(seed=0, count_A=3, count_B=3), LossConfig(gan_mode=gan_mode)
    found, engines = [], {}
    for impl, dtype in (
        ("triton", torch.float32),
        ("reference", torch.float32),
        ("reference", torch.float64),
    ):
        config = dataclasses.replace(SMALL, netG="resnet_0blocks", ngf=2, ndf=2, netD="pixel", impl=impl)
        engines[impl] = make_engine(copy_of(seeded_networks(config), dtype), loss, device=device)
        batch = random_batch(16, plan, 0)
        batch = dataclasses.replace(batch, A=batch.A.to(device, dtype), B=batch.B.to(device, dtype))
        found.append(engines[impl].step(batch, LR))
    assert_parity("losses", *found, torch.float32)
    shown = engines["triton"].describe()["impl"]
    judge = "reference (differentiated twice by wgangp)"
    wanted = {"lsgan": "triton", "wgangp": f"G_AB triton, G_BA triton, D_B {judge}, D_A {judge}"}
    assert shown == wanted[gan_mode]
