"""Flat images are rejected, and faint images are compared on their crop with the highest contrast."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.flat_images import Undecided, flat_images, most_varied_crop
from bench.parity import EXACT, Judge, require_decisive
from tests.bench.small_steps import step_of


def test_most_varied_crop_finds_the_variation_and_stretches_its_contrast() -> None:
    """The crop is found even if the channels have very different values and one of them hardly varies."""
    image = torch.tensor([0.25, 0.75, -1.0]).view(3, 1, 1).repeat(1, 70, 90)
    image[1, 69, 89] += 1e-6
    crop = most_varied_crop(image, 32)
    assert crop.shape == (3, 32, 32)
    assert crop.dtype == torch.float64
    assert crop[1, -1, -1] == 1
    assert (crop[1] == -1).sum() == 32 * 32 - 1
    assert not crop[[0, 2]].any()
    assert most_varied_crop(image[:, -20:], 32).shape == (3, 20, 32)
    noise = torch.rand(3, 40, 40)
    noise[:, :32, :32] *= 0.1
    noise[:, 8:, 8:] *= 10
    assert most_varied_crop(noise, 32).equal(most_varied_crop(noise[:, 8:, 8:], 32))
    assert most_varied_crop(noise, 32).amax() == 1


@pytest.mark.parametrize("faint", [1, 8], ids=["one pixel off by 1/255", "noise of 8 levels"])
def test_float64_parity_passes_on_the_faintest_8_bit_images(judge: Judge, faint: int) -> None:
    images = torch.full((1, 3, 32, 32), 0.6)
    if faint == 1:
        images[:, :, 10, 11] += 2 / 255
    else:
        images += torch.from_numpy(np.random.default_rng(0).integers(0, faint, images.shape)) * 2 / 255
    batches = [replace(batch, images={"A": images, "B": images.flip(3)}) for batch in judge.batches]
    assert replace(judge, batches=batches).float64_difference() < EXACT


def test_rejects_a_flat_image_and_reports_its_path(judge: Judge) -> None:
    """A flat image is rejected even if it is coloured, because not only grey images can be flat."""
    flat = torch.tensor([0.1, -0.7, 0.9]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    first, second = judge.batches
    batches = [
        replace(first, paths={"A": ["a.png"], "B": ["b.png"]}),
        replace(second, images={"A": second.A, "B": flat}, paths={"A": ["c.png"], "B": ["d.png"]}),
    ]
    assert flat_images(batches) == ["d.png"]
    with pytest.raises(Undecided, match=r"^d\.png: images of a single colour"):
        replace(judge, batches=batches).float64_difference()


def test_parity_is_undecided_if_rounding_leaves_nothing_to_compare(judge: Judge) -> None:
    """Parity is undecided if rounding alone causes an error as large as the image.

    In bf16, a dot that differs by one level is lost in the mean, so the allowed error would let an image of
    zeros pass.
    """
    dot = torch.full((1, 3, 32, 32), 0.6)
    dot[:, :, 10, 11] += 2 / 255
    batches = [
        replace(batch, images={"A": dot, "B": dot}, paths={"A": ["a.png"], "B": ["b.png"]})
        for batch in judge.batches
    ]
    faint = replace(judge, batches=batches, _traces={})
    verdicts = faint.judge("official_bf16", step_of("official_bf16", faint))
    with pytest.raises(
        Undecided,
        match=r"images of iteration 1: rounding alone causes an error of \d+% .*, for a.png, b.png",
    ):
        require_decisive(verdicts, faint.batches)
    require_decisive(judge.judge("official_bf16", step_of("official_bf16", judge)), judge.batches)
