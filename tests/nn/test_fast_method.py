"""Tests of the method ``fast``; what it returns is tested in tests/inference/test_fast_network.py."""

from __future__ import annotations

import pickle
import subprocess
import sys

import torch

from fastcyclegan.nn.fast_method import Fast
from fastcyclegan.nn.networks import Discriminator, Generator, UnetGenerator


def test_generators_have_the_method() -> None:
    assert issubclass(Generator, Fast)
    assert issubclass(UnetGenerator, Fast)
    assert not issubclass(Discriminator, Fast)


def test_the_networks_are_what_they_were() -> None:
    """The method changes neither the keys nor what pickle and torch.jit.script make of a network."""
    net = Generator(ngf=2, n_blocks=1, impl="reference").eval()
    assert next(iter(net.state_dict())) == "model.1.weight"
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))
        torch.testing.assert_close(torch.jit.script(net)(x), net(x))


def test_networks_do_not_import_the_inference() -> None:
    code = "import sys, fastcyclegan.nn.networks as n; print('fastcyclegan.inference' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
