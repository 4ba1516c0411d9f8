"""The engine's iteration equals the official one and the reference in float64, and leaves a clean state."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

from fastcyclegan.config import EngineConfig, LossConfig, ModelConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.engine import why_not_compiled
from fastcyclegan.testing import (
    assert_parity,
    copy_of,
    make_engine,
    random_batch,
    relative_error,
    seeded_networks,
)
from tests.engine.orders import LR, SMALL, assert_same_weights, run_engine, run_official, run_reference

PLAIN, PAIRED = EngineConfig(batching="off", pairing="off"), EngineConfig(pairing="on")
PHASES = EngineConfig(pairing="on", overlap="phases")
# (reason, losses, networks, batch size, engines). Each row trains for 20 iterations in float64, so that pools
# of 4 images fill up.
STEPS: list[tuple[str, LossConfig, dict[str, Any], int, list[EngineConfig]]] = [
    (
        "the default: unbatched, batched and paired",
        LossConfig(pool_size=4),
        {},
        1,
        [PLAIN, EngineConfig(), PAIRED],
    ),
    (
        "batch size 3, pool of 4: a query draws images that it stored itself; a partial last batch",
        LossConfig(pool_size=4),
        {},
        3,
        [EngineConfig(), PAIRED],
    ),
    (
        "no identity passes: one image per stage",
        LossConfig(pool_size=4, lambda_identity=0),
        {},
        1,
        [PAIRED],
    ),
    ("no identity passes, batch size 3", LossConfig(pool_size=4, lambda_identity=0), {}, 3, [PAIRED]),
    (
        "unequal loss weights, which reveal swapped domains",
        LossConfig(pool_size=0, lambda_A=7, lambda_B=13, lambda_identity=0.3),
        {},
        1,
        [PAIRED],
    ),
    ("cross entropy, a pool that never fills up", LossConfig(gan_mode="vanilla"), {}, 3, [PAIRED]),
    (
        "cross entropy, no identity, batch size 1",
        LossConfig(gan_mode="vanilla", pool_size=4, lambda_identity=0),
        {},
        1,
        [PAIRED],
    ),
    (
        "the official wgangp, without a penalty",
        LossConfig(gan_mode="wgangp", pool_size=4, lambda_gp=0),
        {},
        1,
        [PAIRED],
    ),
    (
        "the official wgangp, batch size 3, no identity",
        LossConfig(gan_mode="wgangp", pool_size=4, lambda_gp=0, lambda_identity=0),
        {},
        3,
        [PAIRED],
    ),
    (
        "batch norm mixes the images of a batch: official order",
        LossConfig(pool_size=4),
        {"norm": "batch"},
        2,
        [PAIRED],
    ),
    (
        "different numbers of channels, no identity: nothing is paired",
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
        "micro batches of 2 in batches of 3, overlapping phases",
        LossConfig(pool_size=4),
        {},
        3,
        [EngineConfig(micro_batch=2), PHASES],
    ),
    (
        "augmented: unbatched, batched and paired",
        LossConfig(pool_size=4, diffaugment="color,translation,cutout"),
        {},
        1,
        [PLAIN, EngineConfig(), PAIRED],
    ),
    (
        "augmented, micro batches of 2 in batches of 3, overlapping phases",
        LossConfig(pool_size=4, diffaugment="cutout,color"),
        {},
        3,
        [EngineConfig(micro_batch=2), PHASES],
    ),
    (
        "augmented, the official wgangp, different numbers of channels, no pool",
        LossConfig(
            gan_mode="wgangp", pool_size=0, lambda_gp=0, lambda_identity=0, diffaugment="translation,color"
        ),
        {"input_nc": 1},
        2,
        [PAIRED],
    ),
]


@pytest.mark.parametrize(("why", "loss", "changes", "batch", "engines"), STEPS, ids=[row[0] for row in STEPS])
def test_engine_reference_and_official_order_are_equal(
    why: str, loss: LossConfig, changes: dict[str, Any], batch: int, engines: list[EngineConfig]
) -> None:
    model = ModelConfig(**{**SMALL.__dict__, **changes})
    plan = Plan(3, 8, 7, batch, numbers=42 if loss.augmentations else 0)
    batches = [random_batch(16, plan, n, (model.input_nc, model.output_nc), torch.float64) for n in range(20)]
    start = seeded_networks(model, dtype=torch.float64)
    official, reference = copy_of(start), copy_of(start)
    results = [(run_reference(reference, batches, loss), reference)]
    for options in engines:
        engine = make_engine(start, loss, options=options)
        results.append((run_engine(engine, batches), engine.nets))
    expected = run_official(official, batches, loss)
    for history, nets in results:
        for n in range(len(batches)):
            for name, value in expected[n].items():
                # Sums are taken in a different order, so rounding errors of float64 grow over the 20
                # iterations. They stay below 1e-9 (the project's promise).
                assert history[n].get(name, 0.0) == pytest.approx(value, rel=1e-9, abs=1e-12), (n, name)
        assert_same_weights(nets, official, 1e-9)
    images = batches[-1].A
    with torch.no_grad():
        for _, nets in results:
            assert relative_error(nets["G_AB"](images), official["G_AB"](images)) < 1e-9


@pytest.mark.parametrize(
    ("size_B", "engines"),
    [((96, 160), [EngineConfig(), PAIRED]), ((64, 104), [PAIRED, EngineConfig(micro_batch=1)])],
    ids=["B is 96x160", "B is 64x104"],
)
def test_images_that_are_not_square_equal_the_official_order(
    size_B: tuple[int, int], engines: list[EngineConfig]
) -> None:
    """A is 96x160 (height x width). The second batch is partial, and pools of one image replace it."""
    loss, plan = LossConfig(pool_size=1), Plan(3, 3, 3, 2)
    batches = []
    for n in range(2):
        one, other = (random_batch(size, plan, n, dtype=torch.float64) for size in ((96, 160), size_B))
        batches.append(dataclasses.replace(one, images={"A": one.A, "B": other.B}))
    start = seeded_networks(SMALL, dtype=torch.float64)
    official = copy_of(start)
    expected = run_official(official, batches, loss)
    for options in engines:
        engine = make_engine(start, loss, options=options)
        for ours, losses in zip(run_engine(engine, batches), expected, strict=True):
            assert ours == pytest.approx(losses, rel=1e-9, abs=1e-12)
        assert_same_weights(engine.nets, official, 1e-9)


@pytest.mark.parametrize(
    ("batch", "identity", "diffaugment"),
    [(1, 0.5, None), (3, 0.0, None), (2, 0.5, "color,translation,cutout")],
)
def test_wgangp_with_a_penalty_equals_the_reference(
    batch: int, identity: float, diffaugment: str | None
) -> None:
    loss = LossConfig(gan_mode="wgangp", pool_size=3, lambda_identity=identity, diffaugment=diffaugment)
    plan = Plan(0, 9, 9, batch, numbers=42 if diffaugment else 0)
    batches = [random_batch(16, plan, n, dtype=torch.float64) for n in range(20)]
    start = seeded_networks(SMALL, dtype=torch.float64)
    reference, engine = copy_of(start), make_engine(start, loss, options=PAIRED)
    expected, actual = run_reference(reference, batches, loss), run_engine(engine, batches)
    assert all(a == pytest.approx(e, rel=1e-9) for e, a in zip(expected, actual, strict=True))
    assert_same_weights(engine.nets, reference, 1e-9)


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_losses_pass_the_parity_rule(compiled: bool) -> None:
    """The error of the engine in bf16 is at most twice that of the reference under autocast."""
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


def test_step_leaves_no_gradients_and_unfreezes_the_discriminators() -> None:
    engine = make_engine(seeded_networks(SMALL))
    frozen = next(engine.nets["D_A"].parameters())
    frozen.requires_grad_(False)
    before = frozen.clone()
    engine.step(random_batch(16, Plan(0, 9, 9), 0), LR)
    assert all(p.grad is None for net in engine.nets.values() for p in net.parameters())
    trainable = [p.requires_grad for name in ("D_A", "D_B") for p in engine.nets[name].parameters()]
    assert trainable.count(False) == 1  # the one that the user froze
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("options", [EngineConfig(), PHASES])
@pytest.mark.parametrize("names", [("G_AB", "G_BA"), ("D_A", "D_B")])
def test_a_phase_whose_networks_are_all_frozen_trains_nothing(
    names: tuple[str, str], options: EngineConfig
) -> None:
    engine = make_engine(seeded_networks(SMALL), options=options)
    for name in names:
        engine.nets[name].requires_grad_(False)
    before = copy_of(engine.nets)
    losses = engine.step(random_batch(16, Plan(0, 9, 9), 0), LR)
    assert losses.isfinite().all()
    for name, net in engine.nets.items():
        same = all(
            torch.equal(a, b) for a, b in zip(net.parameters(), before[name].parameters(), strict=True)
        )
        assert same == (name in names)


def test_unsupported_settings_raise() -> None:
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
    with pytest.raises(ValueError, match="were replaced after the engine was created; create a new engine"):
        engine.step(random_batch(16, Plan(0, 9, 9), 0), LR)


def test_translate_uses_eval_mode_and_restores_training_mode() -> None:
    engine = make_engine(seeded_networks(ModelConfig(**{**SMALL.__dict__, "use_dropout": True})))
    images = random_batch(16, Plan(0, 9, 9), 0).A
    assert torch.equal(engine.translate("G_AB", images), engine.translate("G_AB", images))
    assert engine.nets["G_AB"].training
    assert all(m.training for m in engine.nets["G_AB"].modules())


def test_a_restored_state_continues_bit_for_bit() -> None:
    """This holds with dropout too, because the state contains the random state."""
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
def test_bf16_on_the_gpu_passes_the_parity_rule() -> None:
    start, loss = seeded_networks(ModelConfig()), LossConfig()
    batch, exact = (
        random_batch(256, Plan(0, 9, 9), 0, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    on_gpu = batch.with_images(torch.Tensor.cuda)
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
def test_an_iteration_on_the_kernels_passes_the_parity_rule(gan_mode: Any) -> None:
    """With a gradient penalty, the discriminators are differentiated twice, so they run in PyTorch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plan, loss = Plan(seed=0, count_A=3, count_B=3), LossConfig(gan_mode=gan_mode)
    losses, engines = [], {}
    for impl, dtype in (
        ("triton", torch.float32),
        ("reference", torch.float32),
        ("reference", torch.float64),
    ):
        config = dataclasses.replace(SMALL, netG="resnet_0blocks", ngf=2, ndf=2, netD="pixel", impl=impl)
        engines[impl] = make_engine(copy_of(seeded_networks(config), dtype), loss, device=device)
        batch = random_batch(16, plan, 0)
        batch = batch.with_images(functools.partial(torch.Tensor.to, device=device, dtype=dtype))
        losses.append(engines[impl].step(batch, LR))
    assert_parity("losses", *losses, torch.float32)
    shown = engines["triton"].describe()["impl"]
    discriminator = "reference (differentiated twice)"
    expected = {
        "lsgan": "triton",
        "wgangp": f"G_AB triton, G_BA triton, D_B {discriminator}, D_A {discriminator}",
    }
    assert shown == expected[gan_mode]
