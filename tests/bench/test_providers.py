"""Providers start from plain reference networks, and all of them produce the same images."""

from __future__ import annotations

import torch

from bench.providers import Unavailable, generator, plain_networks
from fastcyclegan.testing import relative_error, seeded_networks
from tests.bench.small_steps import SMALL, UNCOMPILED


def test_plain_networks_are_reference_modules_with_our_initial_weights() -> None:
    plain, ours = plain_networks(SMALL, seed=3), seeded_networks(SMALL, seed=3)
    assert all(type(net).__module__ == "fastcyclegan.reference" for net in plain.values())
    for name, net in ours.items():
        assert all(
            torch.equal(a, b)
            for a, b in zip(plain[name].state_dict().values(), net.state_dict().values(), strict=True)
        )


def test_all_generator_providers_produce_the_same_image() -> None:
    net, x = plain_networks(SMALL)["G_AB"], torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        truth = net.double()(x.double())
    net.float()
    for name in UNCOMPILED:
        try:
            run, precision = generator(name, net, "cpu", ngf=8, n_blocks=1)
        except Unavailable:
            continue
        assert relative_error(run(x), truth) < (1e-5 if precision == "fp32" else 0.1)
        faulty, _ = generator(name, net, "cpu", fault=True, ngf=8, n_blocks=1)
        assert relative_error(faulty(x), truth) > 0.1
