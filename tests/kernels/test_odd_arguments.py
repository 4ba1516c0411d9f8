"""The public operators called with odd arguments give what plain torch gives, or raise as clearly as it does.

test_checks.py tests the messages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcyclegan.kernels import instance_norm, reflect_conv2d, residual_block
from tests.nn.odd_calls import check, check_refused, outcome, train
from tests.nn.odd_inputs import DTYPES, LAYOUTS, NOT_TENSORS, SHAPES, in_float64

pytestmark = pytest.mark.usefixtures("no_tf32")


class Operator(nn.Module):
    """A function of images with weights of the given shapes."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(0.2 * torch.randn(shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias), 0.2)


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, bias)


def _block(x: Tensor, weight1: Tensor, weight2: Tensor) -> Tensor:
    return x + F.instance_norm(_conv(F.relu(F.instance_norm(_conv(x, weight1))), weight2))


# Our operator, its options, the same of plain torch, and the shapes of the weights.
OPERATORS: dict[str, tuple[Callable[..., Tensor], dict[str, Any], Callable[..., Tensor], Any]] = {
    "instance_norm": (instance_norm, {"act": "leaky_relu"}, _norm, [(3,), (3,)]),
    "reflect_conv2d": (reflect_conv2d, {"padding": 1}, _conv, [(4, 3, 3, 3), (4,)]),
    "residual_block": (residual_block, {}, _block, [(3, 3, 3, 3), (3, 3, 3, 3)]),
}
IMPLS = ("reference", "triton")
# What our operators refuse although torch computes it, as documented.
REFUSED = {
    ("instance_norm", "no channels"): "x must have channels and pixels",
    ("instance_norm", "no rows"): "x must have channels and pixels",
    ("instance_norm", "no columns"): "x must have channels and pixels",
    ("reflect_conv2d", "no batch dimension"): r"x must be \[N, C, H, W\], got shape \(3, 6, 7\)",
    ("residual_block", "no batch dimension"): r"x must be \[N, C, H, W\], got shape \(3, 6, 7\)",
}
# Documented as supported, and tested with the operators; torch refuses an image of another dtype.
OTHER_DTYPES = {"float64", "float16", "bfloat16", "inference", "meta"}


def trio(name: str, impl: str) -> list[nn.Module]:
    """Return an operator of ours, of plain torch, and the latter in float64, with the same weights."""
    function, options, plain, shapes = OPERATORS[name]
    torch.manual_seed(0)
    ours = Operator(lambda x, *weights: function(x, *weights, **options, impl=impl), *shapes)
    pytorch = Operator(plain, *shapes)
    pytorch.load_state_dict(ours.state_dict())
    return [ours, pytorch, copy.deepcopy(pytorch).double()]


def images() -> Tensor:
    return torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(5)) * 2 - 1


def outcomes(name: str, impl: str, make: Callable[[Tensor], Any]) -> list[Any]:
    arguments = [make(images()), make(images()), in_float64(make(images()))]
    return [outcome(train, net, x) for net, x in zip(trio(name, impl), arguments, strict=True)]


# Some of the kernels' products multiply a pixel beside the window by zero. What is not finite can therefore
# reach one more column.
FINITE_ONLY = ("reflect_conv2d", "triton")
# The block reads its images as the convolution does.
BLOCK_LAYOUTS = {"channels_last", "transposed", "one image expanded", "storage offset", "NaN"}
LAYOUT_CASES = [
    (name, layout, impl)
    for name in OPERATORS
    for layout in LAYOUTS
    for impl in IMPLS
    if (name, impl) != ("residual_block", "triton") or layout in BLOCK_LAYOUTS
    if (name, impl) != FINITE_ONLY or layout not in ("NaN", "infinity")
]


@pytest.mark.parametrize(("name", "layout", "impl"), LAYOUT_CASES)
def test_layouts(name: str, layout: str, impl: str) -> None:
    check(outcomes(name, impl, LAYOUTS[layout]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPERATORS)
def test_shapes(name: str, shape: str, impl: str) -> None:
    found = outcomes(name, impl, SHAPES[shape])
    if (name, shape) in REFUSED:
        check_refused(found[0], REFUSED[name, shape])
    elif name == "instance_norm" and shape.startswith("no images"):
        # Torch 2.13 fails on an empty batch with weights.
        assert not isinstance(found[0], Exception), repr(found[0])
        assert not any(t.any() for t in found[0].values())
    else:
        check(found)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", [kind for kind in DTYPES if kind not in OTHER_DTYPES])
@pytest.mark.parametrize("name", OPERATORS)
def test_dtypes(name: str, kind: str, impl: str) -> None:
    check(outcomes(name, impl, DTYPES[kind]))


@pytest.mark.parametrize("impl", ["auto", *IMPLS])
@pytest.mark.parametrize("name", OPERATORS)
def test_meta_tensors(name: str, impl: str) -> None:
    x = images().to("meta")
    nets = zip(trio(name, impl), (x, x, x.double()), strict=True)
    found = [outcome(train, net.to("meta"), argument) for net, argument in nets]
    if impl == "triton":
        check_refused(found[0], "impl='triton' needs an NVIDIA GPU, got meta")
    else:
        check(found)


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("kind", NOT_TENSORS)
@pytest.mark.parametrize("name", OPERATORS)
def test_things_that_are_no_tensors(name: str, kind: str, impl: str) -> None:
    make, word = NOT_TENSORS[kind]
    error = outcome(train, trio(name, impl)[0], make(images()))
    assert isinstance(error, (TypeError, AttributeError))
    assert word in str(error)
