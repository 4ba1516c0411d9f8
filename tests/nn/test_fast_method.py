"""The method ``fast`` of the generators, which does not change the networks themselves."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastcyclegan import Discriminator, Generator, UnetGenerator, load_generator
from fastcyclegan.checkpoints.run_files import save_weights
from fastcyclegan.inference.fast_network import FastNetwork


@pytest.mark.parametrize("net", [Generator(ngf=2, n_blocks=0), UnetGenerator(num_downs=5, ngf=1)])
def test_generators_have_it(net: Generator | UnetGenerator) -> None:
    net.eval()
    names, x = list(net.state_dict()), torch.rand(1, 3, 32, 32)
    fast = net.fast()
    assert type(fast) is FastNetwork
    assert torch.allclose(fast(x), net(x), atol=1e-5)
    assert list(net.state_dict()) == names
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.jit.script(net)):
        assert torch.allclose(other(x), net(x), atol=1e-5)
    assert not hasattr(Discriminator(ndf=2), "fast")


def test_a_loaded_generator_has_it(tmp_path: Path) -> None:
    save_weights(tmp_path / "g.pth", Generator(ngf=2, n_blocks=0).state_dict())
    net = load_generator(tmp_path / "g.pth")
    assert isinstance(net, Generator)
    assert isinstance(net.fast(), nn.Module)
    with pytest.raises(ValueError, match="fast: precision must be fp32 or bf16"):
        net.fast("int8")


def test_networks_do_not_import_inference() -> None:
    code = "import sys, fastcyclegan.nn.networks; print('fastcyclegan.inference' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
