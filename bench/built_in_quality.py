"""Train on the built-in images with several seeds, and record how well the held-out images are translated.

    python -m bench.built_in_quality --output bench/results

Every run is that of ``python scripts/train.py --compile --seed SEED`` in a temporary folder. The scores that
it prints are also written to built_in_dataset.json, and printed as the table of fastcyclegan/data/README.md.
Held-out images of seed 0 and their translations are drawn into built_in_dataset.png. Other flags of train.py
can be given; they replace --compile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.machine import machine
from fastcyclegan import CycleGAN
from fastcyclegan.cli import parse_train
from fastcyclegan.console import Console
from fastcyclegan.data import builtin
from fastcyclegan.data.pixels import save_image, to_pixels, to_unit_range
from fastcyclegan.training.trainer import Trainer

# The strip shows the first images of each direction, enlarged so that single stripes can be seen.
SHOWN, SCALE, GAP = 4, 2, 8
SCORES = tuple(field.name for field in dataclasses.fields(builtin.Score))
Pixels = NDArray[np.uint8]


def train(seed: int, flags: Sequence[str]) -> tuple[Trainer, dict[str, builtin.Score]]:
    """Train with ``seed`` in a temporary folder. Return the trainer, and the scores of both directions."""
    with tempfile.TemporaryDirectory() as folder:
        config = parse_train([*flags, "--seed", str(seed), "--checkpoints_dir", folder])
        trainer = CycleGAN(config).train(Console())
        engine, images = trainer.run.engine, trainer.run.images
        assert images is not None
        return trainer, builtin.scores(engine.translate, images, engine.device)


def strip(trainer: Trainer, seed: int) -> Image.Image:
    """Draw SHOWN images of each direction in one row, and their translations in the row below."""
    engine = trainer.run.engine
    blocks = []
    for source, target in ("AB", "BA"):
        # Other scenes for each direction, so that no image shows the answer to another one.
        first = SHOWN * "AB".index(source)
        before = np.stack([builtin.draw(source, seed, "test", first + n) for n in range(SHOWN)])
        after = to_pixels(
            engine.translate(f"G_{source}{target}", to_unit_range(torch.from_numpy(before), engine.device))
        )
        blocks.append(np.concatenate([_row(before), _white(GAP, SHOWN), _row(after)]))
    middle = np.full((len(blocks[0]), 4 * GAP, 3), 255, dtype=np.uint8)
    return Image.fromarray(np.concatenate([blocks[0], middle, blocks[1]], axis=1))


def _row(images: Pixels) -> Pixels:
    """Join images [N, H, W, 3] side by side, enlarged, with gaps between them."""
    large = images.repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    gap = np.full((large.shape[1], GAP, 3), 255, dtype=np.uint8)
    parts = [part for image in large for part in (image, gap)]
    return np.concatenate(parts[:-1], axis=1)


def _white(height: int, images: int) -> Pixels:
    width = images * builtin.SIZE * SCALE + (images - 1) * GAP
    return np.full((height, width, 3), 255, dtype=np.uint8)


def table(record: dict[str, Any]) -> str:
    """Return the scores of ``record``, the content of built_in_dataset.json, as a Markdown table."""
    lines = [
        "| `--seed` | A to B: gap closed | distance | B to A: gap closed | distance |",
        "|---|---|---|---|---|",
    ]
    for run in record["runs"]:
        cells = [f"{run[name][score]:.2f}" for name in ("AB", "BA") for score in SCORES]
        lines.append(f"| {run['seed']} | {' | '.join(cells)} |")
    title = f"{record['machine']['hardware']}, `{' '.join(record['flags'])}`"
    return "\n".join([*lines, "", f"{record['iterations']:,} iterations on {title}."])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line that the module docstring describes."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path(), metavar="DIR", help="output folder (default: current folder)"
    )
    options, flags = parser.parse_known_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    options.output.mkdir(parents=True, exist_ok=True)
    if not flags:
        flags = ["--compile"]
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        trainer, scores = train(seed, flags)
        both = {name: dataclasses.asdict(score) for name, score in scores.items()}
        runs.append({"seed": seed, **both})
        if seed == 0:
            save_image(strip(trainer, seed), options.output / "built_in_dataset.png")
    about = {"machine": machine(), "flags": flags, "iterations": trainer.run.iteration, "runs": runs}
    (options.output / "built_in_dataset.json").write_text(json.dumps(about, indent=1) + "\n")
    print(table(about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
