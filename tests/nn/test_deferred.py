"""Tests of deferred operations: what computes them, and which tensors are saved for the backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.nn.networks import Discriminator, Generator
from fastcyclegan.testing import parameters_that_count
from tests.nn.triples import DEVICE, check_parity, launches, network_triple, outputs

pytestmark = pytest.mark.usefixtures("no_tf32")


def test_autocast_saves_no_copies_of_weights() -> None:
    """Weights are rounded to 16 bits for each use. Only the parameters are saved for the backward."""
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
    # The first upsampling layer has no norm before it, so PyTorch's operator runs, with autocast's cache.
    assert [t.shape for t in saved if t.shape in shapes and t.data_ptr() not in weights] == [
        net.model[12].weight.shape
    ]


def test_frozen_biases_get_no_gradient() -> None:
    net = Discriminator(ndf=4, impl="triton").to(DEVICE).requires_grad_(False)
    x = torch.randn(1, 3, 32, 32, device=DEVICE, requires_grad=True)
    net(x).sum().backward()
    assert x.grad.any()
    assert all(p.grad is None for p in net.parameters())


def test_number_of_launches_without_hooks() -> None:
    """A generator needs two launches per norm that is not small, four per block, two for the first
    convolution and one for the last.

    The first convolution needs one launch more than the last, to pad its image.
    """
    net, x = Generator(ngf=8, n_blocks=2, impl="triton"), torch.randn(1, 3, 128, 128)
    # Norms at 128 and 64 pixels; at 32 x 32 one program holds everything, unless a border is written.
    first, down, blocks, up, last = 2, 2 + 2 + 1, 2 * 4, 2 + 2, 1
    assert launches(net, x) == first + down + blocks + up + last


def test_norms_write_the_border_if_cudnn_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """If cuDNN computes the convolutions, results and gradients are the same, without our convolution."""
    nets = network_triple("Generator", ngf=4, n_blocks=1, upsample="resize")
    net, x = nets[0], torch.randn(1, 3, 16, 16, device=DEVICE)
    with dry_run() as dry:
        net(x)
    assert any("reflect_conv" in name for name in dry.counts.launches)
    for module in ("chains", "deferred"):
        monkeypatch.setattr(f"fastcyclegan.nn.{module}.backend_of", lambda *a: "cudnn")
    ys = outputs(nets, x)
    check_parity("output", ys)
    for y in ys:
        y.square().sum().backward()
    for name in parameters_that_count(nets[1]):
        check_parity(name, [n.get_parameter(name).grad for n in nets])
    with dry_run() as dry:
        net(x)
    assert not any("reflect_conv" in name for name in dry.counts.launches)


def test_wrong_input_dtype_raises_as_in_torch() -> None:
    x = torch.zeros(1, 3, 8, 8, device=DEVICE)
    for impl in ("triton", "reference"):
        with pytest.raises(
            RuntimeError, match=r"should be the same|expected scalar type"
        ):  # the first message is that with oneDNN, the second without
            Generator(ngf=2, n_blocks=0, impl=impl).to(DEVICE, torch.bfloat16)(x)
