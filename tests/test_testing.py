"""Test the helpers that other tests compare with: which biases cancel, and the messages of failures."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastcyclegan import InstanceNormAct, accelerate, reference
from fastcyclegan.fusion.fused_modules import FusedInstanceNorm2d
from fastcyclegan.nn import networks
from fastcyclegan.testing import (
    assert_parity,
    assert_same_bits,
    is_cancelled_bias,
    parameters_that_count,
    tf32,
)


def conv(**options: bool) -> nn.Conv2d:
    return nn.Conv2d(3, 3, 3, padding=1, **options)


def accelerated() -> nn.Module:
    net = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 3, 3), nn.InstanceNorm2d(3), nn.ReLU(), conv())
    accelerate(net)
    assert isinstance(net[2], FusedInstanceNorm2d)
    return net


# (reason, network, number of biases that cancel)
STRUCTURES: list[tuple[str, Callable[[], nn.Module], int]] = [
    (
        "the generator: 5 convolutions and 2 per block, but not the last one",
        lambda: networks.Generator(ngf=2, n_blocks=2, impl="reference"),
        9,
    ),
    (
        "blocks without a padding layer",
        lambda: reference.Generator(ngf=2, n_blocks=1, padding_type="zero"),
        7,
    ),
    (
        "resize convolutions, norms with weights",
        lambda: reference.Generator(ngf=2, n_blocks=1, affine=True, upsample="resize"),
        7,
    ),
    ("blocks with dropout", lambda: reference.Generator(ngf=2, n_blocks=1, use_dropout=True), 7),
    ("no norm, so every bias counts", lambda: reference.Generator(ngf=2, n_blocks=1, norm="none"), 0),
    (
        "the levels of a U-Net, except the innermost downsampling",
        lambda: networks.UnetGenerator(ngf=1, num_downs=5, impl="reference"),
        7,
    ),
    (
        "the PatchGAN, except its first and last convolution",
        lambda: networks.Discriminator(ndf=2, n_layers=2, impl="reference"),
        2,
    ),
    ("the pixel discriminator", lambda: reference.PixelDiscriminator(ndf=2), 1),
    ("inside a wrapper", lambda: nn.DataParallel(reference.Discriminator(ndf=2, n_layers=1)), 1),
    (
        "inside a compiled module",
        lambda: torch.compile(reference.Discriminator(ndf=2, n_layers=1), backend="eager"),
        1,
    ),
    ("a norm fused with its activation", lambda: nn.Sequential(conv(), InstanceNormAct(3, act="relu")), 1),
    ("layers fused by accelerate", accelerated, 1),
    (
        "a Sequential with named layers",
        lambda: nn.Sequential(OrderedDict(c=conv(), n=nn.InstanceNorm2d(3, affine=True))),
        1,
    ),
    ("an identity in between", lambda: nn.Sequential(conv(), nn.Identity(), nn.InstanceNorm2d(3)), 1),
    (
        "two norms, the first of which has its own weights",
        lambda: nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.InstanceNorm2d(3)),
        0,
    ),
    (
        "running statistics in training",
        lambda: nn.Sequential(conv(), nn.InstanceNorm2d(3, track_running_stats=True)),
        1,
    ),
    (
        "running statistics in evaluation",
        lambda: nn.Sequential(conv(), nn.InstanceNorm2d(3, track_running_stats=True)).eval(),
        0,
    ),
]


@pytest.mark.parametrize(("reason", "build", "count"), STRUCTURES, ids=[row[0] for row in STRUCTURES])
def test_cancelled_biases_do_not_change_the_output(
    reason: str, build: Callable[[], nn.Module], count: int
) -> None:
    """Changing a bias changes the float64 output. If the bias cancels, the change is only rounding."""
    torch.manual_seed(0)
    net = build().double()
    for p in net.parameters():
        nn.init.normal_(p, 0, 0.2)
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    cancelled = set()
    for name, p in net.named_parameters():
        if not name.endswith("bias") or isinstance(
            net.get_submodule(name.rpartition(".")[0]), nn.modules.instancenorm._InstanceNorm
        ):
            continue
        other, seed = copy.deepcopy(net), torch.get_rng_state()
        with torch.no_grad():
            other.get_parameter(name).add_(torch.randn(p.shape, dtype=p.dtype))
            torch.manual_seed(1)
            y = net(x)
            torch.manual_seed(1)
            moved = (other(x) - y).norm() / y.norm()
        torch.set_rng_state(seed)
        assert moved < 1e-12 or moved > 1e-6
        cancelled.add(name) if moved < 1e-12 else None
    assert len(cancelled) == count
    assert {name for name, _ in net.named_parameters() if is_cancelled_bias(net, name)} == cancelled
    assert parameters_that_count(net).keys() == dict(net.named_parameters()).keys() - cancelled


def test_the_message_locates_wrong_elements() -> None:
    """The message contains what is needed to debug on another machine: both errors, the layout, the number
    of wrong elements, and the first and the worst of them.
    """
    torch.manual_seed(0)
    truth = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    pytorch, ours = truth.float(), truth.float().contiguous(memory_format=torch.channels_last)
    assert_parity("y", ours, pytorch, truth, torch.float32)
    ours[0, 1, 2, 3] += 8
    ours[0, 1, 0, 0] += 1
    with pytest.raises(AssertionError) as failure:
        assert_parity("y", ours, pytorch, truth, torch.float32)
    message = str(failure.value)
    assert "y: relative error 1." in message
    assert "PyTorch's own " in message
    assert (
        "float32 [1, 2, 3, 4] strides [24, 1, 8, 2]; 2 of 24 elements are wrong, first at [0, 1, 0, 0]:"
        in message
    )
    assert "worst at [0, 1, 2, 3]:" in message
    with pytest.raises(
        AssertionError, match="PyTorch's own result is not finite, so there is nothing to compare with"
    ):
        assert_parity("y", ours, pytorch / 0, truth, torch.float32)
    ours[0, 0, 0, 1] = float("nan")
    with pytest.raises(
        AssertionError,
        match=r"relative error inf .* 3 of 24 elements are wrong, first at \[0, 0, 0, 1\]: nan",
    ):
        assert_parity("y", ours, pytorch, truth, torch.float32)


def test_the_message_counts_differing_elements() -> None:
    one = torch.arange(6.0).view(2, 3)
    assert_same_bits("x", one, one.clone())
    other = one.clone()
    other[1, 0] += 1
    with pytest.raises(
        AssertionError,
        match=r"x: float32 .* strides \[3, 1\]; 1 of 6 elements differ, first at \[1, 0\]: 3.0 and 4.0",
    ):
        assert_same_bits("x", one, other)
    with pytest.raises(
        AssertionError, match=r"x: shapes or dtypes differ: torch.float32 \[2, 3\] and torch.float32 \[3\]"
    ):
        assert_same_bits("x", one, other[0])


def test_tf32_keeps_cudnn_enabled() -> None:
    """``tf32`` must keep cuDNN enabled. Without it, PyTorch uses other convolutions, which need 26 GB for a
    7x7 layer of a large image in float64.
    """
    before = torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32
    for allowed in (True, False):
        with tf32(allowed):
            assert torch.backends.cudnn.enabled
            assert torch.backends.cudnn.allow_tf32 == allowed
    assert (torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32) == before
