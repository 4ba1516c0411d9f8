"""L1 and PSNR against numpy, and SSIM against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from fastcyclegan.metrics.images import as_rgb
from fastcyclegan.metrics.pairs import pair_metrics

pytest.importorskip("torchmetrics")
NAMES = ("l1", "psnr", "ssim")
Pixels = NDArray[np.uint8]


def pair(shape: tuple[int, int, int], strength: float, seed: int = 0) -> tuple[Pixels, Pixels]:
    """Return a smooth random image, and a copy with noise of a deviation of ``strength``."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    waves = [np.sin(x / rng.uniform(2, 9) + y / rng.uniform(2, 9)) for _ in range(shape[2])]
    image = 128 + 100 * np.stack(waves, -1)
    noisy = image + rng.normal(0, strength, shape)
    return tuple(each.clip(0, 255).round().astype(np.uint8) for each in (image, noisy))


PAIRS = {
    "small": pair((11, 11, 3), 20),  # one place of the window
    "narrow": pair((11, 40, 3), 5),
    "noise": pair((48, 37, 3), 60),
    "subtle": pair((64, 64, 3), 1),
    "opposite": (pair((20, 20, 3), 0)[0], 255 - pair((20, 20, 3), 0)[0]),
    "bright": (np.full((16, 16, 3), 255, np.uint8), np.full((16, 16, 3), 254, np.uint8)),
    "black and white": (np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)),
    "gray": tuple(as_rgb(image) for image in pair((32, 24, 1), 30)),
}


@pytest.fixture(params=PAIRS)
def images(request: pytest.FixtureRequest) -> tuple[Pixels, Pixels]:
    return PAIRS[request.param]


def test_l1_and_psnr_are_those_of_numpy(images: tuple[Pixels, Pixels]) -> None:
    fake, real = (image.astype(float) for image in images)
    found = pair_metrics(*images, NAMES)
    assert found["l1"] == pytest.approx(np.abs(fake - real).mean() / 255, rel=1e-12)
    expected = 10 * math.log10(255**2 / ((fake - real) ** 2).mean())
    assert found["psnr"] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_ssim_is_that_of_scikit_image(images: tuple[Pixels, Pixels]) -> None:
    """Variances are differences of sums of squares up to 255^2, so they are off by a few eps 255^2, and SSIM
    by that divided by its constant, (0.03 * 255)^2: some 1,000 eps. 16 stands for the number of sums.
    """
    metrics = pytest.importorskip("skimage.metrics")
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = metrics.structural_similarity(
        *(each.astype(float) for each in images), channel_axis=2, **options
    )
    found = pair_metrics(*images, NAMES)["ssim"]
    assert abs(found - expected) <= 16 * np.finfo(float).eps / 0.03**2


def test_equal_images() -> None:
    """PSNR is that of the smallest difference that images of this size can have, plus nothing."""
    image, _ = pair((20, 30, 3), 0)
    other = image.copy()
    other[3, 4, 1] ^= 1
    found, least = pair_metrics(image, image.copy(), NAMES), pair_metrics(image, other, NAMES)
    assert (found["l1"], found["ssim"]) == (0, 1)
    assert found["psnr"] == least["psnr"]
    assert least["l1"] > 0
    other[3, 5, 1] ^= 1
    assert pair_metrics(image, other, NAMES)["psnr"] < found["psnr"]


def test_only_what_is_asked_for() -> None:
    """Images that are too small for SSIM have the other metrics."""
    fake, real = pair((3, 4, 3), 20)
    assert list(pair_metrics(fake, real, ("psnr", "l1"))) == ["l1", "psnr"]
    assert pair_metrics(fake, real, ()) == {}


def test_metrics_are_symmetric_and_get_worse_with_noise() -> None:
    found = [pair_metrics(*pair((40, 40, 3), strength), NAMES) for strength in (2, 8, 32)]
    assert [each["l1"] for each in found] == sorted(each["l1"] for each in found)
    for name in ("psnr", "ssim"):
        assert [each[name] for each in found] == sorted((each[name] for each in found), reverse=True)
    fake, real = pair((40, 40, 3), 8)
    there, back = pair_metrics(fake, real, NAMES), pair_metrics(real, fake, NAMES)
    assert there == pytest.approx(back, rel=1e-12)
