"""Images are resized for a feature network as Pillow does it in floating point, or as PyTorch does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan.metrics.resize import resized

SIZES = [((20, 31), 12), ((7, 5), 16), ((16, 16), 16), ((1, 9), 8)]


def image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "side"), SIZES)
def test_clean_is_pillows_bicubic_filter_without_rounding(size: tuple[int, int], side: int) -> None:
    pixels = image(size)
    found = resized(pixels, side, "clean")
    assert (found.dtype, found.shape) == (torch.float32, (3, side, side))
    for channel in range(3):
        plane = Image.fromarray(pixels[:, :, channel].astype(np.float32))
        expected = np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC))
        assert np.array_equal(found[channel].numpy(), expected.clip(0, 255))
    assert torch.equal(found, found.round()) == (size == (side, side))


def test_clean_clips_what_the_filter_overshoots() -> None:
    """As clean-fid does."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    found = resized(pixels, 32, "clean")
    assert (found.min(), found.max()) == (0, 255)
    plane = Image.fromarray(pixels[:, :, 0].astype(np.float32))
    plain = np.asarray(plane.resize((32, 32), Image.Resampling.BICUBIC))
    assert plain.min() < -1
    assert plain.max() > 256


def test_clean_smooths_before_it_reduces() -> None:
    """Single lines do not vanish or stand out, as they do without antialiasing."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2] = 255
    inner = resized(pixels, 9, "clean")[:, :, 1:-1]
    aliased = resized(pixels, 9, "legacy")[:, :, 1:-1]
    assert (inner - 127.5).abs().max() < (aliased - 127.5).abs().max() / 4


@pytest.mark.parametrize(("size", "side"), SIZES)
def test_legacy_is_pytorchs_bilinear_filter(size: tuple[int, int], side: int) -> None:
    pixels = image(size)
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(planes, (side, side), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized(pixels, side, "legacy"), expected[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("rule", ["clean", "legacy"])
def test_none_keeps_the_size(rule: str) -> None:
    pixels = image((9, 14))
    found = resized(pixels, None, rule)
    assert found.is_contiguous()
    assert np.array_equal(found.permute(1, 2, 0).numpy(), pixels.astype(np.float32))


@pytest.mark.parametrize("rule", ["clean", "legacy"])
def test_values_stay_as_they_are_in_an_image_of_one_colour(rule: str) -> None:
    pixels = np.full((13, 17, 3), (0, 128, 255), np.uint8)
    found = resized(pixels, 8, rule)
    expected = torch.tensor([0.0, 128.0, 255.0]).view(3, 1, 1).expand(3, 8, 8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
