"""Tests of the counts of launches and calls for an image on a GPU."""

from __future__ import annotations

import pytest

from fastcyclegan.inference.image_counts import image_counts
from fastcyclegan.nn.networks import Generator


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_captured_image_takes_one_launch(precision: str) -> None:
    net = Generator(ngf=8, n_blocks=2)
    network = image_counts(net, 16, 16, precision, "network")
    uncaptured = image_counts(net, 16, 16, precision, "uncaptured")
    captured = image_counts(net, 16, 16, precision, "captured")
    assert captured.launches == {"graph": 1}
    assert captured.aten == {"copy_": 1, "clone": 1}
    assert uncaptured.launches.total() == network.launches.total() > 15
    if precision == "bf16":  # all weights are rounded in one call
        assert uncaptured.aten["_foreach_copy_"] == 1
        assert uncaptured.aten.total() < network.aten.total() / 1.5
