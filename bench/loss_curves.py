"""Compare the losses of fastcyclegan with those of the official training step over many iterations.

    python -m bench.loss_curves --output bench/results

Both train on the built-in images, by default for 300 iterations with three seeds. The official training step
runs as people usually run it, and fastcyclegan as ``train.py --compile`` does. Both start from the same
weights and see the same samples, but the official pool draws its own random numbers. Rounding makes the two
runs diverge, so the limit of the test is the spread between seeds. For every loss, the two runs with the same
seed must be closer to each other than two official runs with different seeds, at the same iteration and on
average over the iterations. The curves are written as an image (needs matplotlib) and as numbers. The exit
code is 1 if a loss fails this test.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.baselines import plain_networks
from bench.cyclegan_baseline import cyclegan_config
from bench.machine import DEVICE, machine
from bench.providers import train_step
from fastcyclegan.data import builtin
from fastcyclegan.data.batch import Batch
from fastcyclegan.data.sample_plan import Plan

CONFIG = cyclegan_config(netG="resnet_2blocks", ngf=16, ndf=32)
SMOOTHED = 20
NAMES = CONFIG.make_recipe().loss_names
# The two kinds of losses, each with the beginnings of its names.
KINDS = {"Cycle and identity": ("cycle", "idt"), "Adversarial": ("G", "D")}
Curves = NDArray[np.float64]


def images(count: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Return built-in training images of both domains, [count, 3, 64, 64] in [-1, 1]."""
    return _drawn("A", count), _drawn("B", count)


def _drawn(domain: str, count: int) -> torch.Tensor:
    pixels = np.stack([builtin.draw(domain, 0, "train", n) for n in range(count)])
    return torch.from_numpy(pixels / 127.5 - 1).float().permute(0, 3, 1, 2).to(DEVICE)


def curves(provider: str, seed: int, iterations: int) -> Curves:
    """Train with ``provider`` and return the losses, [iterations, 8]."""
    torch.manual_seed(seed)
    step = train_step(provider, plain_networks(CONFIG, seed), DEVICE, CONFIG)
    a, b = images()
    plan = Plan(seed, len(a), len(b))
    losses = []
    for n in range(iterations):
        epoch, numbers = plan.batch(n)
        samples = [plan.sample(epoch, i) for i in numbers]
        A, B = a[[s.index_A for s in samples]], b[[s.index_B for s in samples]]
        batch = Batch.of(A, B, [""], [""], samples)
        losses.append(step.run(batch))
    return torch.stack(losses).double().cpu().numpy()


def smoothed(losses: Curves) -> Curves:
    """Return running means over SMOOTHED iterations."""
    sums = np.cumsum(np.concatenate([np.zeros((1, losses.shape[1])), losses]), axis=0)
    return (sums[SMOOTHED:] - sums[:-SMOOTHED]) / SMOOTHED


def distances(official: list[Curves], ours: list[Curves]) -> list[tuple[str, float, float]]:
    """Return the name of each loss with two distances: between implementations, and between seeds.

    The first is the distance between fastcyclegan and the official training step with the same seed. The
    second is the distance between two official runs with different seeds. Both are means over the iterations,
    relative to the loss.
    """
    rows = []
    for column, name in enumerate(NAMES):
        official_curves = [smoothed(run)[:, column] for run in official]
        our_curves = [smoothed(run)[:, column] for run in ours]
        size = float(np.mean(official_curves))
        paths = _distance(zip(our_curves, official_curves, strict=True)) / size
        seeds = _distance(itertools.combinations(official_curves, 2)) / size
        rows.append((name, paths, seeds))
    return rows


def _distance(pairs: Iterable[tuple[Curves, Curves]]) -> float:
    return float(np.mean([np.abs(a - b).mean() for a, b in pairs]))


def draw(official: list[Curves], ours: list[Curves], file: Path) -> None:
    """Draw one panel per loss, and save the figure to ``file``.

    Each seed has its own colour. Curves of the official training step are dashed, and those of fastcyclegan
    are solid. Needs matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(2, len(NAMES) // 2)
    for column, (name, axes) in enumerate(zip(NAMES, panels.flat, strict=True)):
        for seed, (official_run, our_run) in enumerate(zip(official, ours, strict=True)):
            for run, style in ((official_run, "--"), (our_run, "-")):
                y = smoothed(run)[:, column]
                x = np.arange(SMOOTHED, SMOOTHED + len(y))
                axes.plot(x, y, style, color=f"C{seed}", linewidth=1)
        axes.set_title(name)
    figure.suptitle(
        f"Losses, mean over {SMOOTHED} iterations. Colour: seed. Dashed: official; solid: fastcyclegan."
        f" {machine()['hardware']}"
    )
    figure.savefig(file, dpi=100)


def summary(record: dict[str, Any]) -> str:
    """Return the ranges of the distances of ``record``, the content of loss_curves.json, as two sentences."""
    ranges = {}
    for kind, names in KINDS.items():
        rows = [row for row in record["apart"] if row[0].startswith(names)]
        for column, pair in ((1, "paths"), (2, "seeds")):
            percents = [100 * row[column] for row in rows]
            ranges[kind, pair] = f"{min(percents):.0f} to {max(percents):.0f} %"
    sentences = [
        f"{kind} losses differ by {ranges[kind, 'paths']} between paths and by {ranges[kind, 'seeds']}"
        " between seeds."
        for kind in KINDS
    ]
    return " ".join(sentences)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line that the module docstring describes. Returns 1 if a loss fails the test."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument(
        "--iterations", type=int, default=300, help="iterations per run (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds, at least 2 (default: %(default)s)")
    parser.add_argument(
        "--provider",
        choices=("ours", "ours_compiled"),
        default="ours_compiled",
        help="which of fastcyclegan's providers to compare with the official one (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="output folder (default: current folder)"
    )
    options = parser.parse_args(arguments)
    if options.iterations <= SMOOTHED or options.seeds < 2:
        parser.error(f"--iterations must be more than {SMOOTHED}, and --seeds at least 2")
    options.output.mkdir(parents=True, exist_ok=True)
    official = [curves("official", seed, options.iterations) for seed in range(options.seeds)]
    ours = [curves(options.provider, seed, options.iterations) for seed in range(options.seeds)]
    rows = distances(official, ours)
    run = f"{machine()['hardware']}, {options.iterations} iterations, {options.seeds} seeds"
    print(f"{run}: mean relative distances of the smoothed losses")
    for name, paths, seeds in rows:
        same_seed = f"fastcyclegan and official, same seed: {paths:.4f}"
        print(f"{name:8} {same_seed}; official, different seeds: {seeds:.4f}")
    draw(official, ours, options.output / "loss_curves.png")
    about = {
        "machine": machine(),
        "iterations": options.iterations,
        "seeds": options.seeds,
        "provider": options.provider,
        "apart": rows,
    }
    (options.output / "loss_curves.json").write_text(json.dumps(about, indent=1) + "\n")
    print(summary(about))
    near = all(paths < seeds for _, paths, seeds in rows)
    return int(not near)


if __name__ == "__main__":
    sys.exit(main())
