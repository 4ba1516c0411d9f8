"""Networks called with odd arguments give what plain torch gives, or raise as clearly as it does."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.nn.odd_calls import SUBJECTS, Outcome, check, check_refused, images, outcome, train, trio
from tests.nn.odd_inputs import DTYPES, LAYOUTS, NOT_TENSORS, SHAPES, in_float64

pytestmark = pytest.mark.usefixtures("no_tf32")

IMPLS = ("reference", "triton")

# Interpreted kernels are slow, so networks of several layers get only the layouts that they read differently.
INTERPRETED = {
    "generator": ["channels_last", "NaN"],
    "unet": ["channels_last"],
    "patches": ["transposed", "one image expanded", "every second pixel", "storage offset", "subclass"],
    "pixels": ["overlapping rows", "parameter"],
    "norm": list(LAYOUTS),
    "accelerated": ["channels_last", "some of the channels"],
}
LAYOUT_CASES = [(name, layout, "reference") for name in SUBJECTS for layout in LAYOUTS] + [
    (name, layout, "triton") for name, layouts in INTERPRETED.items() for layout in layouts
]

# What our code refuses although torch computes it, as its documentation says.
REFUSED = {
    ("norm", "no batch dimension"): "must have 3 channels, got shape [(]3, 6, 7[)]",
    ("norm", "no rows"): "x must have channels and pixels",
    ("norm", "no columns"): "x must have channels and pixels",
}
# What our code computes although torch 2.13 refuses it: a norm with weights of an empty batch, and inputs
# that need not be saved.
COMPUTED = {("norm", "no images"), ("accelerated", "no images"), ("norm", "no images of no rows")}


def outcomes(name: str, impl: str, make: Any) -> list[Outcome]:
    arguments = [make(images(name)) for _ in range(2)]
    arguments.append(in_float64(arguments[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return [outcome(train, net, x) for net, x in zip(trio(name, impl), arguments, strict=True)]


@pytest.mark.parametrize(("name", "layout", "impl"), LAYOUT_CASES)
def test_layouts(name: str, layout: str, impl: str) -> None:
    """Outputs and all gradients are those of plain torch for valid images in any kind of memory."""
    check(outcomes(name, impl, LAYOUTS[layout]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SUBJECTS)
def test_shapes(name: str, shape: str, impl: str) -> None:
    if (name, shape) == ("unet", "no batch dimension"):
        # The skips of the official U-Net cannot concatenate a single image; ours can.
        net, x = trio(name, impl)[0], SHAPES[shape](images(name))
        assert torch.equal(net(x), net(x[None])[0])
        return
    found = outcomes(name, impl, SHAPES[shape])
    if (name, shape) in REFUSED:
        check_refused(found[0], REFUSED[name, shape])
    elif (name, shape) in COMPUTED:
        assert not isinstance(found[0], Exception), repr(found[0])
        assert not any(gradient.any() for gradient in found[0].values())
    else:
        check(found)


# The reference accepts float64 images with fp32 weights, which torch does not. Inference tensors are computed
# like any other where torch accepts them.
DTYPE_CASES = [
    (name, kind, impl)
    for name in SUBJECTS
    for kind in DTYPES
    for impl in IMPLS
    if (name, kind, impl) != ("norm", "float64", "reference")
    and (kind != "inference" or impl == "reference" or name in ("patches", "norm"))
]


@pytest.mark.parametrize(("name", "kind", "impl"), DTYPE_CASES)
def test_dtypes_and_devices(name: str, kind: str, impl: str) -> None:
    """The weights are in fp32 on the CPU."""
    found = outcomes(name, impl, DTYPES[kind])
    if kind == "meta" and impl == "triton" and not isinstance(found[1], Exception):
        check_refused(found[0], "impl='triton' needs an NVIDIA GPU, got meta")
    elif kind == "inference" and isinstance(found[0], dict):
        # A call that need not save its input may compute the result.
        plain = outcomes(name, impl, LAYOUTS["contiguous"])[1:]
        check([found[0], *({key: t for key, t in p.items() if key != "x"} for p in plain)])
    else:
        check(found)


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("kind", NOT_TENSORS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_things_that_are_no_tensors(name: str, kind: str, impl: str) -> None:
    """The error is of the type of torch's and names the type of the argument."""
    make, word = NOT_TENSORS[kind]
    found = outcomes(name, impl, make)
    check(found)
    assert word in str(found[0])
