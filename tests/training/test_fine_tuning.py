"""Starting from one trained generator is worth as many iterations as it was trained for."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcyclegan.cli import parse_train
from fastcyclegan.console import Console
from fastcyclegan.data import builtin
from fastcyclegan.training.trainer import train

ITERATIONS = 1200  # of the presets for the built-in images


def score(runs: Path, name: str, *flags: str) -> builtin.Score:
    """Train, and return the score of the translations of held-out images from A to B."""
    config = parse_train(["--device", "cpu", "--checkpoints_dir", str(runs), "--name", name, *flags])
    run = train(config, Console()).run
    assert run.images is not None
    return builtin.scores(run.engine.translate, run.images, run.engine.device)["AB"]


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [0, 40])
def test_a_tenth_of_the_iterations_reaches_what_the_file_had_reached(tmp_path: Path, warmup: int) -> None:
    """From the file of G_AB alone, with new discriminators and a new G_BA, which could also ruin it.

    The same iterations without the file do not get there.
    """
    trained = score(tmp_path, "trained")
    file = tmp_path / "trained" / "latest_net_G_A.pth"
    tenth = ("--max_iters", str(ITERATIONS // 10), "--seed", "1")
    tuned = score(tmp_path, "tuned", *tenth, "--init_from", str(file), "--warmup_D", str(warmup))
    scratch = score(tmp_path, "scratch", *tenth)
    assert tuned.distance_ratio <= trained.distance_ratio < scratch.distance_ratio
