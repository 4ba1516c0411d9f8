"""Tests of the C++ kernels as PyTorch's operators, and of impl="cpp" and "auto" in the public functions."""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.kernels import (
    dispatch,
    instance_norm,
    instance_norm_ref,
    reflect_conv2d,
    reflect_conv2d_ref,
    residual_block,
    residual_block_ref,
)
from fastcyclegan.kernels._convolution import Convolution
from fastcyclegan.kernels.cpu import library, operators
from fastcyclegan.kernels.dispatch import resolve_impl
from fastcyclegan.testing import assert_parity, assert_same_bits
from tests.kernels.cpu.processor import BF16, FP32, images

OPS = torch.ops.fastcyclegan


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _norm_arguments(dtype: torch.dtype) -> tuple[Any, ...]:
    x = images(2, 5, 4, 6, dtype=dtype)
    return x, torch.randn(5), torch.randn(5), images(2, 5, 4, 6, dtype=dtype), 1e-5, "relu", 0.0


def _conv_arguments(dtype: torch.dtype, **changes: Any) -> tuple[Any, ...]:
    x, weight = images(2, 8, 5, 6, dtype=dtype), torch.randn(12, 8, 3, 3)
    options = (True, 1e-5, "relu", 0.0, changes.get("border", 1), changes.get("float_out", False))
    conv = changes.get("conv", Convolution()).aten
    if conv.transposed:
        weight = torch.randn(8, 12, 3, 3)
    return x, torch.randn(8), None, weight, torch.randn(12), *options, *conv.flat(), changes.get("by", "cpp")


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_operators_pass_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(OPS.cpp_norm, _norm_arguments(dtype))
    torch.library.opcheck(
        OPS.cpp_norm, (torch.randn(1, 3, 4, 4).to(dtype), None, None, None, 1e-5, "none", 0.0)
    )
    torch.library.opcheck(OPS.cpp_norm_conv, _conv_arguments(dtype))
    torch.library.opcheck(OPS.cpp_norm_conv, _conv_arguments(dtype, float_out=True, by="torch"))
    strided = {"border": 0, "conv": Convolution(2, 1)}
    torch.library.opcheck(OPS.cpp_norm_conv, _conv_arguments(dtype, **strided))
    transposed = {"border": 0, "conv": Convolution(2, 1, True, 1)}
    torch.library.opcheck(OPS.cpp_norm_conv, _conv_arguments(dtype, **transposed))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({0: torch.zeros(2, 8, 5, 6, dtype=torch.float64)}, "float32 or bfloat16 on the CPU"),
        ({0: torch.zeros(2, 8, 5, 6, dtype=torch.int32)}, "floating point"),
        ({0: torch.zeros(8, 5, 6)}, r"\[N, C, H, W\]"),
        ({0: torch.zeros(2, 7, 5, 6)}, "7 channels|norm_weight|weight must be"),
        ({0: torch.zeros(2, 8, 1, 1), 9: 0}, "more than 1 spatial element"),
        ({1: torch.zeros(3)}, r"weight must be \[8\]"),
        ({3: torch.zeros(12, 4, 3, 3)}, "for 8 channels"),
        ({3: torch.zeros(12, 8, 3)}, "four dimensions"),
        ({3: torch.zeros(0, 8, 3, 3)}, "four dimensions"),
        ({3: torch.zeros(12, 8, 3, 3, dtype=torch.float16)}, "torch.float32"),
        ({3: torch.zeros(12, 8, 9, 9)}, "as large as the kernel"),
        ({4: torch.zeros(11)}, r"bias must be \[12\]"),
        ({7: "gelu"}, "act one of"),
        ({9: 5}, "padding must be"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[int, Any], match: str) -> None:
    arguments = list(_conv_arguments(FP32))
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises((ValueError, TypeError), match=match):
        OPS.cpp_norm_conv(*arguments)
    with pytest.raises((ValueError, TypeError), match=match), torch._subclasses.FakeTensorMode() as mode:
        OPS.cpp_norm_conv(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))


def test_a_wrong_residual_is_refused() -> None:
    for residual in (torch.zeros(2, 5, 4, 5), torch.zeros(2, 5, 4, 6, dtype=BF16)):
        arguments = list(_norm_arguments(FP32))
        arguments[3] = residual
        with pytest.raises(ValueError, match="residual must be"):
            OPS.cpp_norm(*arguments)


def _calls() -> dict[str, Any]:
    """Return calls of the public functions, by impl; with "reference" they are computed by PyTorch."""
    weight, other = torch.randn(20, 20, 3, 3) / 13, torch.randn(20, 20, 3, 3) / 13
    seven, bias = torch.randn(3, 20, 7, 7) / 30, torch.randn(3)
    scale = torch.rand(20) + 0.5
    return {
        "instance_norm": lambda x, **k: instance_norm(x, scale, -scale, act="relu", residual=x, **k),
        "reflect_conv2d": lambda x, **k: reflect_conv2d(x, weight, padding=1, **k),
        "reflect_conv2d, few outputs": lambda x, **k: reflect_conv2d(x, seven, bias, padding=3, **k),
        "reflect_conv2d, two weights": lambda x, **k: reflect_conv2d(x, [weight, other], padding=1, **k),
        "residual_block": lambda x, **k: residual_block(x, weight, other, **k),
        "residual_block, two weights": lambda x, **k: residual_block(
            x, [weight, other], [other, weight], **k
        ),
    }


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", _calls())
def test_public_functions_equal_float64(name: str, autocast: bool) -> None:
    call, x = _calls()[name], images(2, 20, 7, 9)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, pytorch = call(x, impl="cpp"), call(x, impl="reference")
    dtype = ours.dtype
    assert dtype == (BF16 if autocast and name != "instance_norm" else FP32)
    truth = _in_float64(name, x.to(dtype), dtype)
    assert_parity(name, ours, pytorch, truth, dtype)


def _in_float64(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute the call in float64, with weights that are rounded as its operator rounds them."""
    torch.manual_seed(0)
    weight, other = ((torch.randn(20, 20, 3, 3) / 13).to(dtype).double() for _ in range(2))
    seven, bias = (torch.randn(3, 20, 7, 7) / 30).to(dtype).double(), torch.randn(3).to(dtype).double()
    scale = (torch.rand(20) + 0.5).double()
    x = x.double()
    return {
        "instance_norm": lambda: instance_norm_ref(x, scale, -scale, act="relu", residual=x),
        "reflect_conv2d": lambda: reflect_conv2d_ref(x, weight, padding=1),
        "reflect_conv2d, few outputs": lambda: reflect_conv2d_ref(x, seven, bias, padding=3),
        "reflect_conv2d, two weights": lambda: reflect_conv2d_ref(x, [weight, other], padding=1),
        "residual_block": lambda: residual_block_ref(x, weight, other),
        "residual_block, two weights": lambda: residual_block_ref(x, [weight, other], [other, weight]),
    }[name]()


@pytest.mark.parametrize("name", _calls())
def test_images_in_any_layout(name: str) -> None:
    call = _calls()[name]
    x = images(2, 20, 7, 9, layout="gaps")
    expected = call(x.contiguous(memory_format=torch.channels_last), impl="cpp")
    for other in (x, x.contiguous()):
        y = call(other, impl="cpp")
        assert_parity(name, y, expected, expected.double(), FP32)
    assert call(x[:0], impl="cpp").shape == (0, *expected.shape[1:])


def test_functions_compile_in_one_graph() -> None:
    torch.compiler.reset()
    x, weight = images(1, 8, 6, 6), torch.randn(8, 8, 3, 3)

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return residual_block(instance_norm(x, act="relu"), weight, weight)

    compiled = torch.compile(run, fullgraph=True, dynamic=True)
    for size in (6, 9):
        x = images(1, 8, size, size)
        assert_same_bits("compiled", compiled(x), run(x))


# --- The choice of an implementation ------------------------------------------------------------------------


def test_auto_selects_the_kernels_without_a_gradient() -> None:
    x, weight = torch.randn(1, 3, 4, 4), torch.randn(3, requires_grad=True)
    assert resolve_impl("test", "auto", x) == "cpp"
    for impl in ("auto", "cpp"):
        assert resolve_impl("test", impl, x, (None, weight)) == "reference"
        assert resolve_impl("test", impl, x.clone().requires_grad_()) == "reference"
        with torch.no_grad():
            assert resolve_impl("test", impl, x, (weight,)) == "cpp"
        with torch.inference_mode():
            assert resolve_impl("test", impl, torch.zeros(1)) == "cpp"


def test_pytorch_serves_gradients() -> None:
    """impl="cpp" is exact in training too: PyTorch's operators compute forward and backward."""
    x, weight = images(1, 8, 6, 6), torch.randn(8, 8, 3, 3, requires_grad=True)
    results = []
    for impl in ("cpp", "reference"):
        leaf = x.clone().requires_grad_()
        y = residual_block(leaf, weight, weight, impl=impl)
        (dx, dw) = torch.autograd.grad(y.square().sum(), (leaf, weight), create_graph=True)
        results.append((y, dx, dw, torch.autograd.grad(dx.sum(), leaf)[0]))
    for ours, expected in zip(*results, strict=True):
        assert_same_bits("gradient", ours, expected)


def test_what_the_kernels_do_not_support() -> None:
    for dtype in (torch.float16, torch.float64):
        x = torch.zeros(1, 3, 4, 4, dtype=dtype)
        assert resolve_impl("test", "auto", x) == "reference"
        with pytest.raises(TypeError, match=f"test: impl='cpp' takes float32 or bfloat16, got {dtype}"):
            resolve_impl("test", "cpp", x)
    with pytest.raises(ValueError, match="impl='cpp' needs a CPU, got meta"):
        resolve_impl("test", "cpp", torch.zeros(1, device="meta"))
    with pytest.raises(TypeError, match=r"got torch\.sparse"):
        resolve_impl("test", "cpp", torch.zeros(2, 2).to_sparse())
    assert resolve_impl("test", "auto", torch.zeros(2, 2).to_sparse()) == "reference"


def _one_image(x: Tensor, impl: str) -> Tensor:
    return instance_norm(x[None], impl=impl)[0]


def test_transforms_are_computed_by_pytorch() -> None:
    x = images(2, 3, 5, 5)
    for impl in ("auto", "cpp"):
        mapped = torch.func.vmap(functools.partial(_one_image, impl=impl))(x)
        torch.testing.assert_close(mapped, instance_norm(x, impl="reference"))
        _, tangent = torch.func.jvp(functools.partial(instance_norm, impl=impl), (x,), (x,))
        assert tangent.isfinite().all()


def test_without_a_compiler_auto_warns_once_and_cpp_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "needs a C++ compiler, and none was found"
    monkeypatch.setattr(library, "why_not_cpp", lambda: reason)
    monkeypatch.setattr(dispatch, "_was_reported", False)
    x = images(1, 3, 4, 4)
    with pytest.warns(RuntimeWarning, match="PyTorch computes the layers that need it") as caught:
        y = instance_norm(x)
    assert len(caught) == 1
    assert reason in str(caught[0].message)
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits("reference", instance_norm(x), y)
    with pytest.raises(ValueError, match=re.escape(f"instance_norm: impl='cpp' {reason}")):
        instance_norm(x, impl="cpp")
    with pytest.raises(ValueError, match=re.escape(reason)):
        dispatch.check_impl("cpp", torch.device("cpu"))


def test_an_old_processor_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "processor", lambda: "")
    x = images(1, 3, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits("reference", instance_norm(x), instance_norm(x, impl="reference"))


def test_exported_and_traced_functions_need_no_operator_of_ours() -> None:
    class Norm(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return instance_norm(x, act="relu")

    x = images(1, 3, 4, 4)
    with torch.no_grad():
        exported = torch.export.export(Norm(), (x,))
        traced = torch.jit.trace(Norm(), x)
    assert "fastcyclegan." not in str(exported.graph)
    assert "fastcyclegan::" not in str(traced.graph)


def test_operators_have_no_gradient() -> None:
    """An operator that is called directly must not give a wrong gradient in silence."""
    x = images(1, 3, 4, 4).requires_grad_()
    y = OPS.cpp_norm(x, None, None, None, 1e-5, "none", 0.0)
    with pytest.raises(RuntimeError):
        y.sum().backward()


def test_convolutions_in_parts_keep_the_order_of_the_images() -> None:
    x, weights = images(4, 4, 5, 5), [torch.randn(6, 4, 3, 3) for _ in range(2)]
    together = operators.convolve_each(x, weights, [], Convolution(), border=1, required=True)
    apart = [F.conv2d(F.pad(x[2 * i : 2 * i + 2], (1,) * 4, mode="reflect"), weights[i]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(apart))
