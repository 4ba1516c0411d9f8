"""Providers of the training step start from plain reference networks with our initial weights."""

from __future__ import annotations

import torch

from bench.providers import plain_networks
from fastcyclegan.testing import seeded_networks
from tests.bench.small_steps import SMALL


def test_plain_networks_are_reference_modules_with_our_initial_weights() -> None:
    plain, ours = plain_networks(SMALL, seed=3), seeded_networks(SMALL, seed=3)
    assert all(type(net).__module__ == "fastcyclegan.reference" for net in plain.values())
    for name, net in ours.items():
        assert all(
            torch.equal(a, b)
            for a, b in zip(plain[name].state_dict().values(), net.state_dict().values(), strict=True)
        )
