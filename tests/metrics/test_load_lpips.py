"""Where the weights of LPIPS are, and the distance of two images in 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastcyclegan.errors import UserError
from fastcyclegan.kernels._cache import cache_folder
from fastcyclegan.metrics.load_lpips import has_weights, least_side, load_lpips, lpips_of
from fastcyclegan.metrics.lpips import BACKBONES
from fastcyclegan.nn.feature_networks import PUBLISHED
from fastcyclegan.settings.metrics import LpipsNet, MetricConfig
from tests.nn.plain_features import random_weights

CPU = torch.device("cpu")


@pytest.fixture
def config(tmp_path: Path) -> MetricConfig:
    """LPIPS on random weights of AlexNet."""
    pytest.importorskip("torchmetrics")
    torch.save(random_weights(BACKBONES["alex"].build()), tmp_path / "alex.pth")
    return MetricConfig(lpips_weights=tmp_path / "alex.pth")


def test_the_distance_of_images_is_that_in_the_unit_range(config: MetricConfig) -> None:
    lpips = load_lpips(config, CPU, print)
    fake, real = np.random.default_rng(0).integers(0, 256, (2, 33, 40, 3), dtype=np.uint8)
    assert lpips_of(lpips, fake, fake.copy()) == 0
    images = [torch.from_numpy(each).permute(2, 0, 1)[None] / 127.5 - 1 for each in (fake, real)]
    # Rounding of float32 through five layers, of which the longest sum has 3,456 products.
    assert lpips_of(lpips, fake, real) == pytest.approx(lpips(*images).item(), rel=3456 * 2**-23)
    assert lpips_of(lpips, fake[::-1], real[::-1]) > 0  # of an array with negative strides


@pytest.mark.parametrize("net", ["alex", "vgg16"])
def test_weights_are_here_if_they_are_given_or_in_the_cache(
    net: LpipsNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not has_weights(MetricConfig(lpips_net=net))
    assert has_weights(MetricConfig(lpips_net=net, lpips_weights=tmp_path / "any.pth"))
    file = cache_folder("features") / PUBLISHED[{"alex": "alexnet", "vgg16": "vgg16"}[net]].file
    file.parent.mkdir(parents=True)
    file.touch()
    assert has_weights(MetricConfig(lpips_net=net))
    other: LpipsNet = "vgg16" if net == "alex" else "alex"
    assert not has_weights(MetricConfig(lpips_net=other))


@pytest.mark.parametrize(("net", "side"), [("alex", 31), ("vgg16", 16)])
def test_the_least_side_is_known_without_weights(net: LpipsNet, side: int) -> None:
    assert least_side(MetricConfig(lpips_net=net)) == side


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.pth: no such file"):
        load_lpips(MetricConfig(lpips_weights=tmp_path / "none.pth"), CPU, print)
