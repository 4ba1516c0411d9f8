"""Tests of the C++ kernels as PyTorch's operators, and of impl="cpp" and "auto" in the public functions."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.kernels import dispatch, instance_norm
from fastcyclegan.kernels._convolution import Convolution
from fastcyclegan.kernels.cpu import calls, choice, library
from fastcyclegan.kernels.dispatch import resolve_impl
from fastcyclegan.testing import assert_parity, assert_same_bits
from tests.kernels.cpu.processor import BF16, FP32, images
from tests.kernels.cpu.public_calls import CALLS, operands

OPS = torch.ops.fastcyclegan


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _norm_arguments(dtype: torch.dtype) -> tuple[Any, ...]:
    x = images(2, 5, 4, 6, dtype=dtype)
    return x, torch.randn(5), torch.randn(5), images(2, 5, 4, 6, dtype=dtype), 1e-5, "relu", 0.0


def _conv_arguments(dtype: torch.dtype, **changes: Any) -> tuple[Any, ...]:
    x = images(2, 8, 5, 6, dtype=dtype, layout=changes.get("layout", "last"))
    weight = torch.randn(12, 8, 3, 3)
    norm, recompute = changes.get("norm", True), changes.get("recompute", False)
    options = (norm, 1e-5, "relu", 0.0, changes.get("border", 1), recompute)
    conv = changes.get("conv", Convolution()).aten
    norm_weight = torch.randn(8) if norm else None
    if conv.transposed:
        weight = torch.randn(8, 12, 3, 3)
    ending = (*conv.flat(), changes.get("float_out", False), changes.get("by", "cpp"))
    return x, norm_weight, None, weight, torch.randn(12), *options, *ending


@pytest.mark.parametrize("gradients", [False, True], ids=["no gradient", "gradients"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_norms_pass_opcheck(dtype: torch.dtype, gradients: bool) -> None:
    planes = (torch.randn(1, 3, 4, 4).to(dtype), None, None, None, 1e-5, "none", 0.0)
    for arguments in (_norm_arguments(dtype), planes):
        torch.library.opcheck(OPS.cpp_norm, _with_gradients(arguments, gradients))


def _with_gradients(arguments: tuple[Any, ...], wanted: bool) -> tuple[Any, ...]:
    """Return the arguments with tensors that require a gradient, if it is ``wanted``."""
    return tuple(a.clone().requires_grad_(wanted) if isinstance(a, Tensor) else a for a in arguments)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "winograd": {},
    "winograd, y computed again": {"recompute": True},
    "winograd, no norm": {"norm": False},
    "from an image in planes": {"layout": "first"},
    "by PyTorch, fp32": {"float_out": True, "by": "torch"},
    "strided": {"border": 0, "conv": Convolution(2, 1)},
    "transposed": {"border": 0, "conv": Convolution(2, 1, True, 1)},
}


@pytest.mark.parametrize("gradients", [False, True], ids=["no gradient", "gradients"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("changes", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_pass_opcheck(changes: dict[str, Any], dtype: torch.dtype, gradients: bool) -> None:
    arguments = _with_gradients(_conv_arguments(dtype, **changes), gradients)
    torch.library.opcheck(OPS.cpp_norm_conv, arguments)


@pytest.mark.parametrize("layout", ["first", "gaps"])
@pytest.mark.parametrize("changes", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_images_of_a_convolution_in_any_layout(changes: dict[str, Any], layout: str) -> None:
    arguments = _conv_arguments(FP32, **changes)
    results = []
    for x in (images(*arguments[0].shape), images(*arguments[0].shape, layout=layout)):
        leaves = [x.copy_(arguments[0]).requires_grad_(), arguments[3].clone().requires_grad_()]
        y = OPS.cpp_norm_conv(leaves[0], *arguments[1:3], leaves[1], *arguments[4:])[0]
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        assert_same_bits("other layout", ours, expected)


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_gradients_pass_opcheck(dtype: torch.dtype) -> None:
    x, weight, bias, *_ = _norm_arguments(dtype)
    _, mean, rstd = OPS.cpp_norm(x, weight, bias, None, 1e-5, "relu", 0.0)
    statistics = (mean, rstd, "relu", 0.0)
    torch.library.opcheck(OPS.cpp_norm_backward, (torch.randn_like(x), x, weight, bias, *statistics))
    for changes in CONVOLUTIONS.values():
        arguments = _conv_arguments(dtype, **changes)
        x, *affine, weight, _, _, _, act, slope, border, _ = arguments[:11]
        conv, by = arguments[11:-2], arguments[-1]
        out, mean, rstd, y = OPS.cpp_norm_conv(*arguments)
        for needs in [[True] * 3] + [[False, True, False]] * (changes == {}):
            saved = (x, *affine, mean, rstd, weight, y, act, slope, border, needs, *conv)
            torch.library.opcheck(OPS.cpp_norm_conv_backward, (torch.randn_like(out), *saved, by))


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


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_public_functions_equal_float64(name: str, autocast: bool) -> None:
    call, tensors = CALLS[name], operands(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, pytorch = call.run(*tensors, impl="cpp"), call.run(*tensors, impl="reference")
    dtype = ours.dtype
    assert dtype == (BF16 if autocast and name != "instance_norm" else FP32)
    truth = call.run(*(t.to(dtype).double() for t in tensors), impl="reference")
    assert_parity(name, ours, pytorch, truth, dtype)


@pytest.mark.parametrize("name", CALLS)
def test_images_in_any_layout(name: str) -> None:
    call, tensors = CALLS[name], operands(name)
    x, others = tensors[0], tensors[1:]
    if name == "instance_norm":
        others = others[:2]
    expected = call.run(x, *others, impl="cpp")
    for other in (torch.stack([x, x], -1)[..., 0], x.contiguous()):
        y = call.run(other, *others, impl="cpp")
        assert_parity(name, y, expected, expected.double(), FP32)
    assert call.run(x[:0], *others, impl="cpp").shape == (0, *expected.shape[1:])


# --- The choice of an implementation ------------------------------------------------------------------------


def test_auto_selects_the_kernels() -> None:
    """Also where a gradient is asked for."""
    for x in (torch.randn(1, 3, 4, 4), torch.zeros(1, requires_grad=True)):
        for impl in ("auto", "cpp"):
            assert resolve_impl("test", impl, x) == "cpp"
            with torch.no_grad():
                assert resolve_impl("test", impl, x) == "cpp"
    with torch.inference_mode():
        assert resolve_impl("test", "auto", torch.zeros(1)) == "cpp"


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


@pytest.mark.parametrize(
    ("processor", "system"),
    [("", "linux"), ("neon", "linux"), ("avx2", "darwin"), ("avx512", "win32")],
    ids=["old processor", "not measured", "macOS", "Windows"],
)
def test_auto_uses_the_kernels_only_where_they_were_measured(
    processor: str, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing, and seeks no compiler."""
    monkeypatch.setattr(choice, "processor", lambda: processor)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(library, "_answer", None)
    monkeypatch.setattr(library, "_find", None)
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


def test_the_first_call_does_not_import_the_compiler() -> None:
    """torch's compiler takes longer to import than an image takes to translate."""
    code = """if True:
        import sys, torch
        from fastcyclegan import Generator
        with torch.inference_mode():
            Generator(ngf=4, n_blocks=1, impl="cpp").eval()(torch.zeros(1, 3, 16, 16))
        slow = ("torch._dynamo", "torch._inductor", "sympy", "triton")
        print([name for name in slow if name in sys.modules])
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_convolutions_in_parts_keep_the_order_of_the_images() -> None:
    x, weights = images(4, 4, 5, 5), [torch.randn(6, 4, 3, 3) for _ in range(2)]
    together = calls.convolve_each(x, weights, [], Convolution(), border=1, required=True)
    apart = [F.conv2d(F.pad(x[2 * i : 2 * i + 2], (1,) * 4, mode="reflect"), weights[i]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(apart))
