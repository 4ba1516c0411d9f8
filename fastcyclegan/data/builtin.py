"""The built-in dataset: plain shapes (A) and striped shapes (B), drawn by formula from a seed.

Each scene consists of a few discs, squares and diamonds on a uniform background. A paints the shapes in one
colour; B paints them in horizontal stripes of two other colours, with a period of four rows. The palette is
fixed, so the correct translation is determined: a plain shape becomes a striped shape in the same place, and
the background does not change. Unpaired training images of A and B show different scenes. A held-out image of
A and the held-out image of B with the same name show the same scene, so each is the perfect translation of
the other. As pairs, the two images of a scene are side by side in one file, A on the left, in training too.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastcyclegan.data.fit import Fit, load_pixels
from fastcyclegan.data.pixels import to_pixels, to_unit_range
from fastcyclegan.data.sample_plan import uniforms
from fastcyclegan.data.scan import Images

SIZE = 64
GROUND, PLAIN, STRIPES = (226, 221, 208), (214, 108, 44), ((38, 70, 120), (240, 244, 250))
PERIOD = 4
COUNTS = {"train": 200, "test": 32}

Pixels = NDArray[np.uint8]
Settings = Mapping[str, Mapping[str, Any]]


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
    return _painted(domain, seed, {"train": 1 + "AB".index(domain), "test": 0}[split], index)


def draw_pair(seed: int, split: str, index: int) -> Pixels:
    """Draw scene ``index`` in both domains as [SIZE, 2 * SIZE, 3] uint8, with A on the left."""
    stream = {"train": 1, "test": 0}[split]
    return np.concatenate([_painted(domain, seed, stream, index) for domain in "AB"], axis=1)


def _painted(domain: str, seed: int, stream: int, index: int) -> Pixels:
    """Draw scene ``index`` of a ``stream`` of scenes in the colours of ``domain``."""
    mask = _shapes(uniforms(13, seed, stream, index))
    image = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    image[:] = GROUND
    if domain == "A":
        image[mask] = PLAIN
    else:
        dark = (np.arange(SIZE) % PERIOD < PERIOD // 2)[:, None]
        image[mask & dark], image[mask & ~dark] = STRIPES
    return image


def write(root: Path, seed: int, check: Callable[[], object] = lambda: None, *, paired: bool = False) -> None:
    """Draw the dataset into ``root``/{train,test}{A,B}, or as pairs into ``root``/{train,test}, except for
    images that are already there.

    An image of which only a part was written, because a process was killed or the power failed, is drawn
    again. ``check`` is called before each image and can end the drawing by an exception. Raises OSError if a
    file cannot be written.
    """
    for split, count in COUNTS.items():
        for domain in [""] if paired else "AB":
            folder = root / f"{split}{domain}"
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                check()
                pixels = draw_pair(seed, split, index) if paired else draw(domain, seed, split, index)
                file, image = folder / f"{index:03d}.png", io.BytesIO()
                Image.fromarray(pixels).save(image, format="PNG")
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


def side_for(multiple: int) -> int:
    """Return the side to which the images are resized for networks that need multiples of ``multiple``."""
    return -(-SIZE // multiple) * multiple


def with_fitting_images(settings: Settings | None, given: Mapping[str, Any]) -> Settings | None:
    """Return a recipe's ``settings`` for this dataset, with images that fit the U-Net in ``given``, if any.

    Both contain settings, by group and name and by name. Those in ``given`` may be the texts of a command
    line, and need not be valid.
    """
    unet = re.fullmatch(r"unet_([1-9][0-9]{0,3})", str(given.get("netG", "")))
    if settings is None or unet is None:
        return settings
    side = side_for(int(unet[1]))
    return {**settings, "data": {**settings["data"], "load_size": side, "crop_size": side}}


def _translated(
    translate: Callable[[Tensor], Tensor], source: Pixels, side: int, device: torch.device
) -> Pixels:
    """Return the translations of ``source`` [N, SIZE, SIZE, 3], made at ``side``, in the size of ``source``.

    ``translate`` maps [N, 3, H, W] in [-1, 1] on ``device`` to the same shape and range.
    """
    images = to_unit_range(torch.from_numpy(_resized(source, side)), device)
    return _resized(to_pixels(translate(images)), SIZE)


def _resized(images: Pixels, side: int) -> Pixels:
    """Return ``images`` [N, H, W, 3] as [N, side, side, 3]."""
    if images.shape[1] == side:
        return images
    size = side, side
    resized = [Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def score(
    translate: Callable[[Tensor], Tensor],
    source: Pixels,
    target: Pixels,
    device: torch.device,
    side: int = SIZE,
) -> Score:
    """Score how well ``translate`` turns each image of ``source`` into its counterpart in ``target``.

    Both are [N, SIZE, SIZE, 3]. ``translate`` maps [N, 3, side, side] in [-1, 1] on ``device`` to the same
    shape and range.
    """
    translated = _translated(translate, source, side, device)
    return Score(gap_closed(source, translated, target), distance_ratio(source, translated, target))


def scores(
    translate: Callable[[str, Tensor], Tensor], images: Images, device: torch.device, side: int = SIZE
) -> dict[str, Score]:
    """Return the scores of both directions, "AB" and "BA", for the held-out images of ``images``.

    ``translate`` is called with "G_AB" or "G_BA" and images as in ``score``.
    """
    held_out = {"A": _read(images.test_A, "A", images), "B": _read(images.test_B, "B", images)}
    found = {}
    for source, target in ("AB", "BA"):
        run = functools.partial(translate, f"G_{source}{target}")
        found[f"{source}{target}"] = score(run, held_out[source], held_out[target], device, side)
    return found


@dataclass(frozen=True)
class PairScore:
    """The mean L1 distance from the translations of held-out images to their true counterparts, divided by
    that from the untranslated images, and by that from the mean training image. 0 is perfect.
    """

    of_untranslated: float
    of_mean: float


def pair_score(
    translate: Callable[[Tensor], Tensor], images: Images, device: torch.device, side: int = SIZE
) -> PairScore:
    """Score how well ``translate`` turns the held-out A of each pair in ``images`` into its B.

    ``translate`` is as in ``score``.
    """
    source, target = _read(images.test_A, "A", images), _read(images.test_B, "B", images)
    mean = _read(images.train_B, "B", images).mean(0).round().astype(np.uint8)
    translated = _translated(translate, source, side, device)
    everywhere = np.broadcast_to(mean, target.shape)
    ratios = [distance_ratio(untranslated, translated, target) for untranslated in (source, everywhere)]
    return PairScore(*ratios)


def _read(paths: Sequence[Path], domain: str, images: Images) -> Pixels:
    return np.stack([load_pixels(path, Fit(), half=images.half(domain)) for path in paths])
