"""Exact counts of the launches and PyTorch calls for an image."""

from __future__ import annotations

import pytest

from fastcyclegan.inference.image_counts import image_counts
from fastcyclegan.nn.networks import Generator, UnetGenerator


def test_an_image_at_256x256_needs_few_calls() -> None:
    """In bf16, the network alone rounds 20 weights one by one; the engine rounds them in one call."""
    net = Generator(impl="auto")
    counts = {how: image_counts(net, 256, 256, "bf16", how) for how in ("network", "uncaptured", "captured")}
    assert {how: c.launches.total() for how, c in counts.items()} == {
        "network": 49,
        "uncaptured": 49,
        "captured": 1,
    }
    assert counts["network"].aten["copy_"] == 22
    assert counts["uncaptured"].aten["copy_"] == 2
    assert counts["uncaptured"].aten["_foreach_copy_"] == 1
    assert counts["uncaptured"].aten.total() <= 9
    assert counts["captured"].aten == {"copy_": 1, "clone": 1}


@pytest.mark.parametrize("net", [Generator(n_blocks=1), UnetGenerator(num_downs=5)])
def test_fp32_and_networks_without_such_layers_need_no_copies(net: Generator | UnetGenerator) -> None:
    precisions = ("fp32",) if isinstance(net, Generator) else ("fp32", "bf16")
    for precision in precisions:
        alone, uncaptured = (image_counts(net, 64, 64, precision, how) for how in ("network", "uncaptured"))
        assert uncaptured == alone


def test_the_network_itself_is_not_called() -> None:
    net = Generator(n_blocks=0, ngf=2)
    net.register_forward_hook(lambda *_: pytest.fail("the network was called"))
    before = [p.clone() for p in net.parameters()]
    image_counts(net, 16, 16, "fp32", "network")
    assert all(a.equal(b) for a, b in zip(before, net.parameters(), strict=True))
