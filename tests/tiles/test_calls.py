from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.kernels._norm import Norm
from fastcyclegan.nn.layers import FloatTanh
from fastcyclegan.reference import InstanceNorm2d
from fastcyclegan.testing import assert_parity, relative_error
from fastcyclegan.tiles.calls import Calls, unpadded

IMPLS = ["reference", "triton", "cpp"]
FP32 = torch.float32


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def pixels(channels: int = 4) -> Tensor:
    return torch.randn(1, channels, 9, 7).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("conv", [nn.Conv2d(4, 3, 3), nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1)])
def test_convolutions(conv: nn.Module, impl: str) -> None:
    x = pixels()
    truth = conv.double()(x.double())
    conv.float()
    assert_parity("plain", Calls(impl).convolve(x, conv, None), conv(x), truth, FP32)
    result = Calls(impl).convolve(x, conv, FloatTanh())
    assert_parity("with tanh", result, torch.tanh(conv(x)), torch.tanh(truth), FP32)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_norm_cancels_the_bias_before_it(impl: str) -> None:
    conv, x = nn.Conv2d(4, 3, 3), pixels()
    conv.bias.fill_(1e3)
    result = Calls(impl).convolve(x, conv, InstanceNorm2d(3))
    conv.bias.zero_()
    assert relative_error(result, conv.double()(x.double())) < 1e-5


@pytest.mark.parametrize("impl", IMPLS)
def test_a_norm_and_its_statistics(impl: str) -> None:
    x, residual = pixels(), pixels()
    norm = Norm(torch.randn(4), torch.randn(4), 1e-3, "leaky_relu", 0.3)
    mean, variance = Calls(impl).moments(x)
    result = Calls(impl).normalise(x, norm, (mean, variance), residual)

    def plain(dtype: torch.dtype) -> Tensor:
        layer = nn.functional.instance_norm
        y = layer(x.to(dtype), weight=norm.weight.to(dtype), bias=norm.bias.to(dtype), eps=norm.eps)
        return nn.functional.leaky_relu(y, 0.3) + residual.to(dtype)

    assert_parity("norm", result, plain(FP32), plain(torch.float64), FP32)


def test_an_unpadded_layer_has_the_weights_of_the_layer_later_on() -> None:
    conv = nn.Conv2d(4, 3, 3, padding=2, padding_mode="reflect")
    made = unpadded(conv)
    assert (conv.padding, conv.padding_mode) == ((2, 2), "reflect")
    assert made(pixels()).shape == (1, 3, 7, 5)
    conv.weight = nn.Parameter(torch.randn_like(conv.weight))
    conv.bias.data = torch.randn(3)
    assert made.weight is conv.weight
    assert made.bias is conv.bias
    other = unpadded(nn.ConvTranspose2d(4, 3, 3, stride=2), padding=[1, 0], output_padding=[0, 1])
    assert (other.padding, other.output_padding) == ((1, 0), (0, 1))
