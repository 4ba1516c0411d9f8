"""Runs that freeze networks, or let only the discriminators train at first."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcyclegan import CycleGAN, cli
from fastcyclegan.cli import parse_train
from fastcyclegan.config import TrainConfig, with_changes
from fastcyclegan.console import Console
from fastcyclegan.errors import UserError
from fastcyclegan.training.frozen import frozen_networks
from fastcyclegan.training.trainer import train
from tests.models import TINY, tensors
from tests.training.runs import arguments, assert_same_state, run

Weights = dict[str, dict[str, torch.Tensor]]


def weights(folder: Path, epoch: str = "latest") -> Weights:
    names = ("G_A", "G_B", "D_A", "D_B")
    return {n: torch.load(folder / f"{epoch}_net_{n}.pth", weights_only=True) for n in names}


def changed(one: Weights, two: Weights) -> set[str]:
    return {n for n in one if any(not torch.equal(one[n][key], two[n][key]) for key in one[n])}


EVERY = ("--save_latest_freq", "1", "--save_by_iter")


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_only_the_discriminators_train_in_the_warm_up(
    dataset: Path, tmp_path: Path, norm: str, saves_at_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The generators keep their bits until it ends, and its iterations are part of --max_iters."""
    run(dataset, tmp_path, "r", "--max_iters", "5", "--warmup_D", "3", "--norm", norm, *EVERY)
    saved = [weights(tmp_path / "r", f"iter_{n}") for n in range(1, 5)] + [weights(tmp_path / "r")]
    discriminators, everything = {"D_A", "D_B"}, {"G_A", "G_B", "D_A", "D_B"}
    steps = [changed(before, after) for before, after in itertools.pairwise(saved)]
    assert steps == [discriminators, discriminators, everything, everything]
    printed = capsys.readouterr().out
    assert "warm-up        only D_A and D_B train in the first 3 iterations (--warmup_D)" in printed
    assert "the generators train from iteration 4 on" in printed


def test_frozen_networks_keep_their_bits_to_the_end(
    dataset: Path, tmp_path: Path, saves_at_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = run(dataset, tmp_path, "r", "--max_iters", "3", "--freeze", "G_AB, D_A", *EVERY)
    first, last = weights(tmp_path / "r", "iter_1"), weights(tmp_path / "r")
    assert changed(first, last) == {"G_B", "D_A"}  # by the official names, D_A is our D_B
    assert "frozen         G_AB, D_A (--freeze)" in capsys.readouterr().out
    assert all(p.requires_grad for net in trainer.run.engine.nets.values() for p in net.parameters())


FLAGS = ("--warmup_D", "4", "--freeze", "G_BA", "--ema", "0.9", "--print_freq", "1")


@pytest.mark.parametrize("stop", [2, 4, 6], ids=["in the warm-up", "at its end", "after it"])
@pytest.mark.parametrize("more", [(), ("--use_dropout", "--norm", "batch", "--batch_size", "2")])
def test_a_run_resumes_exactly_in_every_phase(
    dataset: Path, tmp_path: Path, stop: int, more: tuple[str, ...]
) -> None:
    run(dataset, tmp_path, "whole", *FLAGS, *more, "--max_iters", "8")
    config = parse_train(arguments(dataset, tmp_path, "broken", *FLAGS, *more, "--max_iters", "8"))
    train(
        config,
        Console(),
        on_tick=lambda trainer, record: trainer.stop_after(0) if record["iteration"] == stop else None,
    )
    run(dataset, tmp_path, "broken", "--continue_train", "--max_iters", "8")
    assert_same_state(tmp_path / "whole", tmp_path / "broken")


def test_what_is_frozen_can_change_when_a_run_is_resumed(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "2", "--freeze", "G_AB,D_A")
    before = weights(tmp_path / "r")
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "4", "--freeze", "G_BA")
    after = weights(tmp_path / "r")
    assert changed(before, after) == {"G_A", "D_A", "D_B"}
    run(dataset, tmp_path, "r", "--continue_train", "--max_iters", "5", "--freeze", "None")
    assert changed(after, weights(tmp_path / "r")) == {"G_A", "G_B", "D_A", "D_B"}


BAD = [
    (["--freeze", "G_A"], "--freeze: there is no network 'G_A'; the networks are G_AB, G_BA, D_A, D_B"),
    (["--freeze", "G_AB,,D_A"], "freeze must be names of networks, separated by commas, got 'G_AB,,D_A'"),
    (["--freeze", "G_AB,G_BA,D_A,D_B"], "--freeze: all networks are frozen, so there is nothing to train"),
    (["--freeze", "D_A,D_B", "--warmup_D", "2"], "--warmup_D 2 trains only the discriminators, but --freeze"),
    (["--warmup_D", "11", "--max_iters", "10"], "warmup_D 11 is longer than the run, which has max_iters 10"),
    (["--warmup_D", "999", "--n_epochs", "1"], "--warmup_D 999 is longer than the run, which has"),
    (["--warmup_D", "-1"], "warmup_D must be at least 0, got -1"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
@pytest.mark.parametrize("is_builtin", [False, True])
def test_what_cannot_be_frozen_is_refused_in_one_line_before_anything_is_written(
    dataset: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    is_builtin: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = arguments(dataset, tmp_path / "runs", "r", "--n_epochs_decay", "0")
    if is_builtin:
        at = given.index("--dataroot")
        del given[at : at + 2]
    assert cli.train([*given, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_replaced_run_is_kept_if_the_warm_up_is_too_long(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "r", "--max_iters", "1")
    before = {file: file.read_bytes() for file in (tmp_path / "r").glob("*.p*t*")}
    with pytest.raises(UserError, match="is longer than the run"):
        run(dataset, tmp_path, "r", "--overwrite", "--warmup_D", "99999")
    assert {file: file.read_bytes() for file in (tmp_path / "r").glob("*.p*t*")} == before


def test_in_python() -> None:
    """A later call of fit can train what an earlier one froze."""
    model = CycleGAN(**TINY, freeze=["G_AB", "D_B"])
    assert model.config.finetune.freeze == "G_AB,D_B"
    before = {name: next(net.parameters()).clone() for name, net in model.networks.items()}

    def moved() -> set[str]:
        return {n for n, net in model.networks.items() if not torch.equal(next(net.parameters()), before[n])}

    images: Any = [tensors(1)]
    model.fit(images, images)
    assert moved() == {"G_BA", "D_A"}
    model.fit(images, images, n_epochs=2, freeze=None, warmup_D=3)
    assert moved() == {"G_BA", "D_A", "D_B"}
    model.fit(images, images, n_epochs=3)
    assert moved() == {"G_AB", "G_BA", "D_A", "D_B"}
    with pytest.raises(UserError, match="there is no network 'G'"):
        CycleGAN(**TINY, freeze="G")
    with pytest.raises(UserError, match="freeze must be a list of names, got 5"):
        CycleGAN(**TINY, freeze=[5])
    with pytest.raises(UserError, match="--warmup_D 9 is longer than the run, which has 4 iterations"):
        model.fit(images, images, warmup_D=9)


def test_a_call_that_fails_leaves_nothing_frozen() -> None:
    model = CycleGAN(**TINY)
    images: Any = [tensors(1)]
    model.fit(images, images)

    def fail(model: CycleGAN, record: dict[str, Any]) -> None:
        raise RuntimeError("callback")

    with pytest.raises(UserError, match="pool_size was 2"):  # after the table was made
        model.fit(images, images, n_epochs=3, freeze=["G_AB"], pool_size=7)
    with pytest.raises(RuntimeError, match="callback"):
        model.fit(images, images, n_epochs=4, freeze=["G_AB"], pool_size=2, callbacks=[fail])
    assert all(p.requires_grad for net in model.networks.values() for p in net.parameters())
    assert all(net.training for net in model.networks.values())


def test_the_frozen_networks_of_an_iteration() -> None:
    config = with_changes(TrainConfig(), {"finetune": {"warmup_D": 2, "freeze": "D_A"}})
    frozen = [frozen_networks(config, config.make_recipe(), completed) for completed in range(4)]
    assert frozen == [("G_AB", "G_BA", "D_A")] * 2 + [("D_A",)] * 2
