"""Antialiased generators compute what CUT's generator computes, and have its keys."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastcyclegan import CycleGAN, cli, load_generator, reference
from fastcyclegan.checkpoints.find_networks import find_networks
from fastcyclegan.config import from_dict, to_dict
from fastcyclegan.nn.networks import Generator
from fastcyclegan.testing import assert_parity, relative_error
from tests.conftest import write_images
from tests.cut_generator import CutGenerator
from tests.models import TINY, same, tensors

BOTH = {"downsample": "antialias", "upsample": "antialias"}
# CUT's switches, and the arguments that stand for them.
SWITCHES: list[tuple[bool, bool, dict[str, str]]] = [
    (False, False, BOTH),
    (False, True, {"downsample": "antialias"}),
    (True, False, {"upsample": "antialias"}),
]


def cut_generator(
    no_down: bool = False, no_up: bool = False, ngf: int = 4, n_blocks: int = 2
) -> CutGenerator:
    torch.manual_seed(0)
    net = CutGenerator(ngf, n_blocks, no_down, no_up)
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.2)
    return net


def results(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the output of ``net`` and the gradients of its image and its weights."""
    leaf = x.clone().requires_grad_()
    y = net(leaf)
    y.backward(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).sin().view(y.shape))
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": leaf.grad, **gradients}  # type: ignore[dict-item]


@pytest.mark.parametrize(("no_down", "no_up", "arguments"), SWITCHES, ids=["both", "down", "up"])
@pytest.mark.parametrize("kind", [reference.Generator, Generator])
def test_equals_the_generator_of_cut(
    kind: Any, no_down: bool, no_up: bool, arguments: dict[str, str]
) -> None:
    cut, net = cut_generator(no_down, no_up), kind(ngf=4, n_blocks=2, **arguments)
    assert {key: value.shape for key, value in net.state_dict().items()} == {
        key: value.shape for key, value in cut.state_dict().items()
    }
    for key, value in cut.state_dict().items():
        if key.endswith("filt"):
            assert torch.equal(net.state_dict()[key], value), key
    net.load_state_dict(cut.state_dict())
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    expected, found = results(cut.double(), x), results(net.double(), x)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if value.norm() > 1e-9:  # biases before norms have no gradient
            # The sums are in another order: some units in the last place, in each of 20 layers.
            assert relative_error(found[name], value) < 1e-11, name


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("impl", ["auto", "cpp"])
def test_kernels_on_a_cpu_pass_the_parity_rule(impl: str, bf16: bool) -> None:
    check_parity_with_cut(impl, bf16, ngf=8, n_blocks=2, side=32)


@pytest.mark.slow
def test_triton_kernels_pass_the_parity_rule_in_bf16() -> None:
    """In fp32, they are tested with those of the other networks."""
    check_parity_with_cut("triton", True, ngf=2, n_blocks=1, side=16)


def check_parity_with_cut(impl: str, bf16: bool, ngf: int, n_blocks: int, side: int) -> None:
    cut = cut_generator(ngf=ngf, n_blocks=n_blocks)
    net = Generator(ngf=ngf, n_blocks=n_blocks, impl=impl, **BOTH)
    net.load_state_dict(cut.state_dict())
    x = torch.rand(1, 3, side, side) * 2 - 1
    truth = results(copy.deepcopy(cut).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        pytorch, ours = results(cut, x), results(net, x)
    for name, value in truth.items():
        if value.norm() > 1e-9:
            dtype = torch.bfloat16 if bf16 else torch.float32
            assert_parity(name, ours[name], pytorch[name], value, dtype)


def test_compiles_into_one_graph() -> None:
    net = Generator(ngf=4, n_blocks=1, **BOTH)
    x = torch.randn(1, 3, 16, 16)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))
    single = net(x[0])  # without the dimension N
    torch.testing.assert_close(single, net(x)[0])


def test_a_filter_of_the_file_is_kept(tmp_path: Path) -> None:
    """A file with another filter, or with one per channel, is another network and stays one."""
    cut = cut_generator()
    state = cut.state_dict()
    for key in state:
        if key.endswith("filt"):
            nn.init.uniform_(state[key])
    torch.save({"netG": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "g.pth")
    net = load_generator(tmp_path / "g.pth")
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(net(x), cut(x))
    torch.testing.assert_close(net.fast()(x), cut(x).detach())
    net.save_pretrained(tmp_path / "shared")
    torch.testing.assert_close(load_generator(tmp_path / "shared")(x), cut(x))


def test_commands_read_a_file_of_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "latest_net_G.pth", tmp_path / "out"
    torch.save(cut_generator().state_dict(), file)
    assert cli.inspect_checkpoint([str(file)]) == 0
    names = "instance norm, antialiased downsampling, antialiased upsampling"
    assert (
        f"generator resnet_2blocks (ngf 4, 3 to 3 channels, {names}): 24 tensors" in capsys.readouterr().out
    )
    write_images(tmp_path / "in", 1, size=(18, 10))
    flags = f"--weights {tmp_path} --input {tmp_path / 'in'} --output {out} --device cpu".split()
    assert cli.translate(flags) == 0
    assert np.asarray(Image.open(out / "000.png")).shape == (10, 18, 3)


def test_trains_and_resumes(tmp_path: Path) -> None:
    model = CycleGAN(**TINY, **BOTH)
    last = "model.22.bias"
    before = copy.deepcopy(model.networks["G_AB"].state_dict())
    images = [tensors(1, seed) for seed in range(4)]
    model.fit(images, images[1:], max_iters=3)
    model.save(tmp_path / "run")
    after = model.networks["G_AB"].state_dict()
    for key, value in before.items():  # biases before norms have no gradient
        assert torch.equal(after[key], value) == (key.endswith(("filt", "bias")) and key != last), key
    again = CycleGAN.load(tmp_path / "run")
    assert same(model, again)
    assert again.config.model == from_dict(to_dict(model.config)).model
    assert (again.config.model.downsample, again.config.model.upsample) == ("antialias", "antialias")
    again.fit(images, images[1:], max_iters=5)
    assert again.iteration == 5
    official = find_networks(torch.load(tmp_path / "run" / "latest_net_G_A.pth"))[0].architecture
    assert official.settings()["downsample"] == official.settings()["upsample"] == "antialias"
