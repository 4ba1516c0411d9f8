"""What is still to be done to a tensor: into which operator it goes, by which backend, and what that
keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.nn.networks import Discriminator, Generator
from fastcyclegan.testing import parameters_that_count
from tests.nn.triples import DEVICE, hold, launches, outputs, three

pytestmark = pytest.mark.usefixtures("no_tf32")


def test_autocast_keeps_no_copies_of_weights() -> None:
    """A weight is rounded for each use; what is kept is the parameter itself."""
    net = Generator(ngf=8, n_blocks=2, impl="triton").to(memory_format=torch.channels_last)
    weights = {p.data_ptr() for p in net.parameters()}
    saved: list[Tensor] = []
    with (
        dry_run(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        net(torch.zeros(1, 3, 64, 64))
    shapes = {p.shape for p in net.parameters() if p.dim() == 4 and p.shape[1] > 3}
    # The first layer up has no norm before it: PyTorch's own operator, and autocast's own cache.
    assert [t.shape for t in saved if t.shape in shapes and t.data_ptr() not in weights] == [
        net.model[12].weight.shape
    ]


def test_frozen_biases_get_nothing() -> None:
    net = Discriminator(ndf=4, impl="triton").to(DEVICE).requires_grad_(False)
    x = torch.randn(1, 3, 32, 32, device=DEVICE, requires_grad=True)
    net(x).sum().backward()
    assert x.grad.any()
    assert all(p.grad is None for p in net.parameters())


def test_fewer_launches_where_nobody_listens() -> None:
    """Two for each norm that is not small; four for a block; one for the last convolution, and for the first
    its image's border too.
    """
    net, x = Generator(ngf=8, n_blocks=2, impl="triton"), torch.randn(1, 3, 128, 128)
    # Norms at 128 and 64 pixels; of 32 x 32 a program holds all, but where a border is written.
    first, down, blocks, up, last = 2, 2 + 2 + 1, 2 * 4, 2 + 2, 1
    assert launches(net, x) == first + down + blocks + up + last


def test_where_cudnn_is_faster_the_norms_write_its_border(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other backend: the same function and gradients, and no convolution of ours."""
    nets = three("Generator", ngf=4, n_blocks=1, upsample="resize")
    net, x = nets[0], torch.randn(1, 3, 16, 16, device=DEVICE)
    with dry_run() as dry:
        net(x)
    assert any("reflect_conv" in name for name in dry.counts.launches)
    for module in ("chains", "deferred"):
        monkeypatch.setattr(f"fastcyclegan.nn.{module}.backend_of", lambda *a: "cudnn")
    ys = outputs(nets, x)
    hold("output", ys)
    for y in ys:
        y.square().sum().backward()
    for name in parameters_that_count(nets[1]):
        hold(name, [n.get_parameter(name).grad for n in nets])
    with dry_run() as dry:
        net(x)
    assert not any("reflect_conv" in name for name in dry.counts.launches)


def test_a_image_of_another_dtype_is_an_error_as_in_torch() -> None:
    x = torch.zeros(1, 3, 8, 8, device=DEVICE)
    for impl in ("triton", "reference"):
        with pytest.raises(
            RuntimeError, match=r"should be the same|expected scalar type"
        ):  # with oneDNN, without
            Generator(ngf=2, n_blocks=0, impl=impl).to(DEVICE, torch.bfloat16)(x)
