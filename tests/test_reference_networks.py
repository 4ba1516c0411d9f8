"""Tests of the reference's networks: official keys and counts, and outputs compared with numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import nn

from fastcyclegan import reference as ref
from fastcyclegan.testing import relative_error

Array = NDArray[np.float64]


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# (reason, network, tensors, parameters): the counts of the official networks.
COUNTS: list[tuple[str, Callable[[], nn.Module], int, int]] = [
    ("the default", lambda: ref.Generator(), 48, 11_378_179),
    ("for 128x128", lambda: ref.Generator(n_blocks=6), 36, 7_837_699),
    (
        "batch norm: running statistics in the file, no biases before it",
        lambda: ref.Generator(norm="batch"),
        140,
        11_383_427,
    ),
    ("affine instance norm, which some checkpoints have", lambda: ref.Generator(affine=True), 94, 11_388_675),
    ("70x70 PatchGAN", lambda: ref.Discriminator(), 10, 2_764_737),
    ("1x1 PatchGAN", lambda: ref.PixelDiscriminator(), 6, 8_705),
    ("U-Net for 256x256", lambda: ref.UnetGenerator(), 32, 54_409_603),
]


@pytest.mark.parametrize(("reason", "build", "tensors", "parameters"), COUNTS, ids=[row[0] for row in COUNTS])
def test_counts_are_the_official_ones(
    reason: str, build: Callable[[], nn.Module], tensors: int, parameters: int
) -> None:
    net = build()
    assert len(net.state_dict()) == tensors
    assert size(net) == parameters


def test_keys_of_the_resnet_generator() -> None:
    actual = shapes(ref.Generator())
    expected = {"model.1": (64, 3, 7, 7), "model.4": (128, 64, 3, 3), "model.7": (256, 128, 3, 3)}
    expected |= {f"model.{n}.conv_block.{k}": (256, 256, 3, 3) for n in range(10, 19) for k in (1, 5)}
    expected |= {"model.19": (256, 128, 3, 3), "model.22": (128, 64, 3, 3), "model.26": (3, 64, 7, 7)}
    assert {name: shape for name, shape in actual.items() if name.endswith("weight")} == {
        f"{n}.weight": s for n, s in expected.items()
    }
    assert {name for name in actual if name.endswith("bias")} == {f"{n}.bias" for n in expected}


def test_keys_of_the_other_networks() -> None:
    assert "model.10.conv_block.6.weight" in shapes(ref.Generator(use_dropout=True))
    assert "model.10.conv_block.5.weight" not in shapes(ref.Generator(use_dropout=True))
    assert {n.split(".")[1] for n in shapes(ref.Discriminator())} == {"0", "2", "5", "8", "11"}
    assert {n.split(".")[1] for n in shapes(ref.PixelDiscriminator())} == {"0", "2", "5"}
    assert shapes(ref.Generator(upsample="resize"))["model.19.weight"] == (128, 256, 3, 3)
    unet = shapes(ref.UnetGenerator(ngf=4))
    assert unet["model.model.0.weight"] == (4, 3, 4, 4)
    assert unet["model.model.3.weight"] == (8, 3, 4, 4)
    assert unet["model.model.1.model.1.weight"] == (8, 4, 4, 4)


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_biases_by_norm(norm: str) -> None:
    """With instance norm, every convolution has a bias. With other norms, only these have one: the
    generators' last convolution, the discriminator's first and last, and the pixel discriminator's first.
    """

    def biased(net: nn.Module) -> list[bool]:
        return [m.bias is not None for m in net.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]

    every = norm == "instance"
    g = biased(ref.Generator(ngf=4, n_blocks=1, norm=norm))
    d = biased(ref.Discriminator(ndf=4, norm=norm))
    p = biased(ref.PixelDiscriminator(norm=norm))
    assert g == [every] * (len(g) - 1) + [True]
    assert d == [True, *[every] * (len(d) - 2), True]
    assert p == [True, every, every]
    u = biased(ref.UnetGenerator(ngf=2, norm=norm, num_downs=5))
    assert sum(u) == (len(u) if every else 1)


def test_discriminator_has_30_by_30_patches_and_limited_width() -> None:
    assert ref.Discriminator(ndf=2)(torch.rand(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    widths = [
        m.out_channels for m in ref.Discriminator(ndf=4, n_layers=6).modules() if isinstance(m, nn.Conv2d)
    ]
    assert widths == [4, 8, 16, 32, 32, 32, 32, 1]


def conv(x: Array, weight: Array, bias: Array | None, stride: int = 1, pad: int = 0) -> Array:
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    out = np.einsum("ncyxhw,ochw->noyx", windows, weight)
    return out if bias is None else out + bias[:, None, None]


def transposed(x: Array, weight: Array, bias: Array | None, kernel: int, out_pad: int) -> Array:
    """Compute a transposed convolution with stride 2 and padding 1 by its definition: insert zeros between
    the pixels, then convolve with the flipped kernel.
    """
    n, c, h, w = x.shape
    spread = np.zeros((n, c, 2 * h - 1, 2 * w - 1))
    spread[:, :, ::2, ::2] = x
    before, after = kernel - 2, kernel - 2 + out_pad
    spread = np.pad(spread, ((0, 0), (0, 0), (before, after), (before, after)))
    return conv(spread, weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], bias)


def instance_norm(x: Array) -> Array:
    mean, variance = x.mean((2, 3), keepdims=True), x.var((2, 3), keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5)


def reflect(x: Array, pad: int) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="reflect")


def relu(x: Array, slope: float = 0.0) -> Array:
    return np.where(x > 0, x, slope * x)


def numpy_generator(state: dict[str, Array], x: Array, n_blocks: int, upsample: str) -> Array:
    def w(n: object) -> tuple[Array, Array]:
        return state[f"model.{n}.weight"], state[f"model.{n}.bias"]

    x = relu(instance_norm(conv(reflect(x, 3), *w(1))))
    for n in (4, 7):
        x = relu(instance_norm(conv(x, *w(n), stride=2, pad=1)))
    for n in range(10, 10 + n_blocks):
        y = relu(instance_norm(conv(reflect(x, 1), *w(f"{n}.conv_block.1"))))
        x = x + instance_norm(conv(reflect(y, 1), *w(f"{n}.conv_block.5")))
    for n in (10 + n_blocks, 13 + n_blocks):
        if upsample == "resize":
            x = conv(reflect(x.repeat(2, axis=2).repeat(2, axis=3), 1), *w(n))
        else:
            x = transposed(x, *w(n), kernel=3, out_pad=1)
        x = relu(instance_norm(x))
    return np.tanh(conv(reflect(x, 3), *w(17 + n_blocks)))


def numpy_unet(state: dict[str, Array], x: Array, downs: int) -> Array:
    def level(x: Array, prefix: str, depth: int) -> Array:
        outermost, innermost = depth == 0, depth == downs - 1
        down = 0 if outermost else 1
        y = conv(
            x if outermost else relu(x, 0.2),
            state[f"{prefix}.{down}.weight"],
            state[f"{prefix}.{down}.bias"],
            stride=2,
            pad=1,
        )
        if not outermost and not innermost:
            y = instance_norm(y)
        if not innermost:
            y = level(y, f"{prefix}.{1 if outermost else 3}.model", depth + 1)
        up = 3 if outermost or innermost else 5
        y = transposed(
            relu(y), state[f"{prefix}.{up}.weight"], state[f"{prefix}.{up}.bias"], kernel=4, out_pad=0
        )
        return np.tanh(y) if outermost else np.concatenate([x, instance_norm(y)], axis=1)

    return level(x, "model.model", 0)


def numpy_discriminator(state: dict[str, Array], x: Array) -> Array:
    def w(n: int) -> tuple[Array, Array]:
        return state[f"model.{n}.weight"], state[f"model.{n}.bias"]

    x = relu(conv(x, *w(0), stride=2, pad=1), 0.2)
    for n, stride in ((2, 2), (5, 2), (8, 1)):
        x = relu(instance_norm(conv(x, *w(n), stride=stride, pad=1)), 0.2)
    return conv(x, *w(11), pad=1)


def randomised(net: nn.Module) -> tuple[nn.Module, dict[str, Array]]:
    """Give ``net`` random float64 weights and biases. Return the network, and its parameters as arrays.

    Weights of zeros and ones would hide a wrong index.
    """
    torch.manual_seed(7)
    net = net.double()
    for p in net.parameters():
        nn.init.normal_(p, 0.0, 0.2)
    return net, {name: value.numpy() for name, value in net.state_dict().items()}


CASES: list[tuple[str, nn.Module, Callable[[dict[str, Array], Array], Array], tuple[int, ...]]] = [
    (
        "resnet, H != W",
        ref.Generator(3, 2, ngf=4, n_blocks=2),
        lambda s, x: numpy_generator(s, x, 2, "transpose"),
        (2, 3, 12, 20),
    ),
    (
        "resize upsampling",
        ref.Generator(1, 3, ngf=4, n_blocks=1, upsample="resize"),
        lambda s, x: numpy_generator(s, x, 1, "resize"),
        (1, 1, 8, 8),
    ),
    (
        "U-Net with one level of each kind",
        ref.UnetGenerator(3, 3, 6, ngf=2),
        lambda s, x: numpy_unet(s, x, 6),
        (1, 3, 64, 64),
    ),
    ("PatchGAN", ref.Discriminator(3, ndf=4), numpy_discriminator, (2, 3, 40, 32)),
]


@pytest.mark.parametrize(("reason", "net", "formula", "shape"), CASES, ids=[row[0] for row in CASES])
def test_networks_against_numpy(
    reason: str, net: nn.Module, formula: Callable[[dict[str, Array], Array], Array], shape: tuple[int, ...]
) -> None:
    net, state = randomised(net)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        ours = net(x)
    # Both are computed in float64 and only differ in the order of sums: 1e-11 is about 1e4 units in the last
    # place over 20 layers.
    assert relative_error(ours, torch.from_numpy(formula(state, x.numpy()))) < 1e-11


def test_generator_gradient_against_finite_differences() -> None:
    net, _ = randomised(ref.Generator(1, 1, ngf=2, n_blocks=1))
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x,), eps=1e-6, atol=1e-6, fast_mode=True)
