"""The table of a training step by layer: every call of an iteration is recorded, and timed by itself."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bench import layer_shares
from bench.baselines import plain_networks
from bench.layer_shares import Call, recorded
from bench.providers import LR
from bench.step_work import layers_of
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.kernels.cpu.library import why_not_cpp
from fastcyclegan.testing import assert_same_bits, make_engine, random_batch, seeded_networks
from tests.bench.small_steps import SMALL

SIZE = 32
BATCH = random_batch(SIZE, Plan(0, 9, 9), 0)
needs_kernels = pytest.mark.skipif(why_not_cpp() != "", reason=f"impl='cpp' {why_not_cpp()}")


def flops_of(calls: Counter[Call], work: str) -> float:
    return sum(count * call.flops for call, count in calls.items() if call.work == work)


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_iteration_is_recorded_and_not_changed(precision: str) -> None:
    plain, observed = (make_engine(seeded_networks(SMALL.model), precision=precision) for _ in range(2))
    expected = plain.step(BATCH, LR)
    with recorded() as calls:
        losses = observed.step(BATCH, LR)
    assert_same_bits("losses", losses, expected)
    nets = plain_networks(SMALL)
    G, D = (layers_of(nets[name], (SIZE, SIZE), 1) for name in ("G_AB", "D_A"))
    g, d = (sum(layer.flops for layer in layers) for layers in (G, D))
    # Each generator translates three images. Each discriminator judges one for the generators, with frozen
    # weights, and two for itself.
    assert flops_of(calls, "forward") == 2 * (3 * g + 3 * d)
    assert flops_of(calls, "wgrad") == 2 * (3 * g + 2 * d)
    # Of their inputs, only the fakes need a gradient that a generator translates back and a discriminator
    # judges for it.
    first = 2 * G[0].flops + 2 * D[0].flops
    assert flops_of(calls, "dgrad") == 2 * (3 * g + 3 * d - first)


@needs_kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prints_every_call_and_the_whole_iteration(
    precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layer_shares, "NETWORKS", SMALL.model)
    monkeypatch.setattr(layer_shares, "ROUNDS", 1)
    assert layer_shares.main(["--size", str(SIZE), "--precision", precision]) == 0
    output = capsys.readouterr().out
    table = [line for line in output.splitlines() if line.startswith("| ")]
    assert len({len(line) for line in table}) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:]]
    for label in (
        "conv 7x7, 3 to 8, 32x32",
        "conv 3x3, 8 to 16, 16x16",
        "transposed conv 3x3, 32 to 16, 16x16",
        "conv 7x7, 8 to 3, 32x32",
        "conv 4x4, 64 to 1, 2x2",
    ):
        assert {row[2] for row in rows if row[0] == label} >= {"forward", "wgrad"}
    assert {row[2] for row in rows if row[0].startswith("norm")} == {"forward", "again", "backward"}
    assert {row[3] for row in rows} <= {"winograd", "wide", "few", "oneDNN", "norm"}
    assert "\none iteration: " in output
    assert "% of the peak of" in output


@pytest.mark.parametrize(
    ("arguments", "reason", "message"),
    [
        ("--size 30", "", "--size must be a multiple of 4 and at least 24, got 30"),
        ("", "needs a processor with AVX2", "impl='cpp' needs a processor with AVX2"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, the table is refused")
def test_refuses_in_one_line(
    arguments: str,
    reason: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(layer_shares, "why_not_cpp", lambda: reason)
    with pytest.raises(SystemExit) as ended:
        layer_shares.main(arguments.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)
