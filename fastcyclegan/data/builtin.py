"""The built-in dataset: plain shapes (A) and striped shapes (B), drawn by formula from a seed.

Each scene consists of a few discs, squares and diamonds on a uniform background. A paints the shapes in one
colour; B paints them in horizontal stripes of two other colours, with a period of four rows. The palette is
fixed, so the correct translation is determined: a plain shape becomes a striped shape in the same place, and
the background does not change. Training images of A and B show different scenes. A held-out image of A and
the held-out image of B with the same name show the same scene, so each is the perfect translation of the
other.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastcyclegan.data.image_file import open_image
from fastcyclegan.data.pixels import to_pixels, to_unit_range
from fastcyclegan.data.sample_plan import uniforms

SIZE = 64
GROUND, PLAIN, STRIPES = (226, 221, 208), (214, 108, 44), ((38, 70, 120), (240, 244, 250))
PERIOD = 4
COUNTS = {"train": 200, "test": 32}

Pixels = NDArray[np.uint8]


def _shapes(u: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask [SIZE, SIZE] that is true inside the shapes of a scene.

    ``u`` contains the 13 numbers in [0, 1) that define the scene: the number of shapes, then the kind, x, y
    and radius of each.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    for kind, cx, cy, r in u[1:].reshape(3, 4)[: 1 + int(u[0] * 3)]:
        radius = SIZE * (0.11 + 0.09 * r)
        dx, dy = np.abs(x - SIZE * (0.2 + 0.6 * cx)), np.abs(y - SIZE * (0.2 + 0.6 * cy))
        distance = (np.hypot(dx, dy), 1.1 * np.maximum(dx, dy), 0.75 * (dx + dy))[int(kind * 3)]
        mask |= distance <= radius
    return mask


def draw(domain: str, seed: int, split: str, index: int) -> Pixels:
    """Draw image ``index`` of ``domain`` "A" or "B" as [SIZE, SIZE, 3] uint8.

    Test images with the same index show the same scene in both domains.
    """
    stream = {"train": 1 + "AB".index(domain), "test": 0}[split]
    mask = _shapes(uniforms(13, seed, stream, index))
    image = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    image[:] = GROUND
    if domain == "A":
        image[mask] = PLAIN
    else:
        dark = (np.arange(SIZE) % PERIOD < PERIOD // 2)[:, None]
        image[mask & dark], image[mask & ~dark] = STRIPES
    return image


def write(root: Path, seed: int, check: Callable[[], object] = lambda: None) -> None:
    """Draw the dataset into ``root``/{train,test}{A,B}, except for images that are already there.

    An image of which only a part was written, because a process was killed or the power failed, is drawn
    again. ``check`` is called before each image and can end the drawing by an exception. Raises OSError if a
    file cannot be written.
    """
    for split, count in COUNTS.items():
        for domain in "AB":
            folder = root / f"{split}{domain}"
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                check()
                file, image = folder / f"{index:03d}.png", io.BytesIO()
                Image.fromarray(draw(domain, seed, split, index)).save(image, format="PNG")
                if not _contains(file, image.getvalue()):
                    file.write_bytes(image.getvalue())


def _contains(file: Path, data: bytes) -> bool:
    try:
        return file.read_bytes() == data
    except FileNotFoundError:
        return False


def stripes(images: NDArray[np.uint8]) -> float:
    """Return the stripe statistic of images [N, H, W, 3].

    It is the mean absolute difference between rows half a period apart, which is large for striped images.
    """
    values = images.astype(np.float64)
    return float(np.abs(values[:, PERIOD // 2 :] - values[:, : -PERIOD // 2]).mean())


def gap_closed(source: Pixels, translated: Pixels, target: Pixels) -> float:
    """Return the share of the stripe-statistic gap from source to target that the translation closes.

    1 means that the translated images have the target domain's statistic, and 0 that they are no closer to it
    than the source images. Overshooting counts like falling short: the result is
    1 - |s(translated) - s(target)| / |s(source) - s(target)|.
    """
    return 1 - abs(stripes(translated) - stripes(target)) / abs(stripes(source) - stripes(target))


def distance_ratio(source: Pixels, translated: Pixels, target: Pixels) -> float:
    """Return the mean L1 distance from translations to targets, divided by that from sources to targets.

    The targets are the true counterparts of the sources. 0 is perfect.
    """

    def distance(images: Pixels) -> float:
        return float(np.abs(images.astype(np.float64) - target.astype(np.float64)).mean())

    return distance(translated) / distance(source)


@dataclass(frozen=True)
class Score:
    """The scores of translated held-out images; see the functions of the same names."""

    gap_closed: float
    distance_ratio: float


def score(
    translate: Callable[[Tensor], Tensor],
    sources: Sequence[Path],
    targets: Sequence[Path],
    device: torch.device,
) -> Score:
    """Score how well ``translate`` turns each image of ``sources`` into its counterpart in ``targets``.

    ``translate`` maps [N, 3, H, W] in [-1, 1] on ``device`` to the same shape and range.
    """
    source, target = _read(sources), _read(targets)
    images = to_unit_range(torch.from_numpy(source), device)
    translated = to_pixels(translate(images))
    return Score(gap_closed(source, translated, target), distance_ratio(source, translated, target))


def scores(
    translate: Callable[[str, Tensor], Tensor], held_out: Mapping[str, Sequence[Path]], device: torch.device
) -> dict[str, Score]:
    """Return the scores of both directions, "AB" and "BA".

    ``translate`` is called with "G_AB" or "G_BA" and images as in ``score``. ``held_out`` lists the held-out
    images of "A" and "B".
    """
    return {
        f"{source}{target}": score(
            functools.partial(translate, f"G_{source}{target}"), held_out[source], held_out[target], device
        )
        for source, target in ("AB", "BA")
    }


def _read(paths: Sequence[Path]) -> Pixels:
    return np.stack([np.asarray(open_image(path)) for path in paths])
