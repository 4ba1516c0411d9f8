"""Compare norm_conv and all its gradients with plain PyTorch in float64.

Other tests check the tensors that it saves, and that it is a valid PyTorch operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan import reference
from fastcyclegan.kernels.norm_conv import norm_conv
from fastcyclegan.testing import assert_parity, relative_error
from tests.kernels.arguments import channels_last

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
STRIDE_1 = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
STRIDE_2 = ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)
TRANSPOSED = ([2, 2], [1, 1], [1, 1], True, [1, 1], 1)
GROUPS = ([1, 1], [1, 1], [1, 1], False, [0, 0], 2)


@dataclass(frozen=True)
class Case:
    why: str
    shape: tuple[int, ...]
    conv: tuple[Any, ...]
    kernel: int = 3
    border: int = 0
    norm: bool = True
    act: str = "relu"
    affine: bool = False
    bias: bool = False
    dtypes: tuple[torch.dtype, ...] = (FP32,)


CASES = [
    Case(
        "a residual block's second convolution", (1, 9, 9, 8), STRIDE_1, border=1, dtypes=(FP32, FP16, BF16)
    ),
    Case(
        "its first convolution: no norm before it", (2, 9, 6, 7), STRIDE_1, border=1, norm=False, act="none"
    ),
    Case(
        "the last layer: seven by seven, few channels out, a bias",
        (1, 8, 8, 12),
        STRIDE_1,
        7,
        border=3,
        bias=True,
    ),
    Case("down, one launch, an affine norm", (2, 8, 8, 8), STRIDE_2, act="leaky_relu", affine=True),
    Case("down, odd size, several tiles", (1, 8, 9, 11), STRIDE_2, act="leaky_relu", bias=True),
    Case("up", (1, 8, 5, 13), TRANSPOSED, bias=True),
    Case("groups, as in other projects", (1, 8, 4, 4), GROUPS),
    Case("the smallest image that can be reflected", (1, 4, 2, 2), STRIDE_1, border=1),
]


def plain(x: Tensor, weight: Tensor, bias: Any, nw: Any, nb: Any, case: Case) -> Tensor:
    """Compute the norm and convolution of ``case`` with PyTorch's own operators."""
    y = x
    if case.norm:
        y = reference.contiguous_gradient(F.instance_norm(x, weight=nw, bias=nb))
        y = F.relu(y) if case.act == "relu" else F.leaky_relu(y, 0.2)
    y = F.pad(y, (case.border,) * 4, mode="reflect") if case.border else y
    return torch.ops.aten.convolution(y, weight, bias, *case.conv)


def results(run: Any, tensors: list[Tensor | None], dy: Tensor, frozen: tuple[int, ...] = ()) -> list[Tensor]:
    leaves = [t if t is None else t.detach().requires_grad_(i not in frozen) for i, t in enumerate(tensors)]
    out = run(*leaves)
    out.backward(dy)
    return [out, *(t.grad for t in leaves if t is not None and t.requires_grad)]


def operands(case: Case, device: str, dtype: torch.dtype = FP32) -> tuple[list[Tensor | None], Tensor]:
    torch.manual_seed(0)
    x = channels_last(*case.shape, device=device).to(dtype)
    C = case.shape[1]
    shape = (
        (C, 6, case.kernel, case.kernel) if case.conv[3] else (6, C // case.conv[5], case.kernel, case.kernel)
    )
    weight = channels_last(*shape, device=device).to(dtype)
    bias = torch.randn(6, device=device).to(dtype) if case.bias else None
    nw, nb = (torch.randn(C, device=device) if case.affine else None for _ in range(2))
    tensors = [x, weight, bias, nw, nb]
    return tensors, channels_last(*plain(*tensors, case).shape, device=device).to(dtype)


def ours(case: Case, recompute: bool = True) -> Any:
    def run(x: Tensor, weight: Tensor, bias: Any, nw: Any, nb: Any) -> Tensor:
        options = {
            "norm": case.norm,
            "norm_weight": nw,
            "norm_bias": nb,
            "act": case.act,
            "slope": 0.2,
            "border": case.border,
        }
        return norm_conv(x, weight, bias, case.conv, recompute=recompute, **options)

    return run


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.why}-{d}") for c in CASES for d in c.dtypes]
)
def test_equals_float64(case: Case, dtype: torch.dtype, recompute: bool, device: str) -> None:
    tensors, dy = operands(case, device, dtype)
    got = results(ours(case, recompute), tensors, dy)
    baseline = results(lambda *t: plain(*t, case), tensors, dy)
    truth = results(
        lambda *t: plain(*t, case), [t if t is None else t.double() for t in tensors], dy.double()
    )
    for i, (a, b, c) in enumerate(zip(got, baseline, truth, strict=True)):
        assert_parity(str(i), a, b, c, dtype)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("frozen", [(1,), (0,), (1, 2)])
@pytest.mark.parametrize("norm", [True, False])
def test_frozen_members_change_nothing_for_the_others(
    frozen: tuple[int, ...], norm: bool, device: str
) -> None:
    """If some tensors are frozen, the gradients of the others do not change.

    For a frozen weight, its gradient and the recomputation of y are skipped. If x needs no gradient, the
    gradient of the input is skipped.
    """
    case = Case(
        "",
        (1, 8, 9, 8),
        STRIDE_1,
        border=1,
        norm=norm,
        bias=True,
        affine=norm,
        act="relu" if norm else "none",
    )
    tensors, dy = operands(case, device)
    got = results(ours(case), tensors, dy, frozen)
    wanted = results(lambda *t: plain(*t, case), tensors, dy, frozen)
    for a, b in zip(got, wanted, strict=True):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("recompute", [True, False])
def test_saves_only_the_documented_tensors(recompute: bool, device: str) -> None:
    case = Case("", (1, 8, 9, 8), STRIDE_1, border=1)
    tensors, _ = operands(case, device)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ours(case, recompute)(tensors[0].requires_grad_(), tensors[1].requires_grad_(), None, None, None)
    expected = {
        "x": 8 * 9 * 8,
        "weight": tensors[1].numel(),
        "mean": 8,
        "rstd": 8,
        "y": 0 if recompute else 8 * 11 * 10,
    }
    assert sorted(t.numel() for t in saved) == sorted(expected.values())


@pytest.mark.parametrize("case", [CASES[1], CASES[3]], ids=lambda c: c.why)
@pytest.mark.parametrize("recompute", [True, False])
def test_opcheck(case: Case, recompute: bool, device: str) -> None:
    (x, weight, bias, nw, nb), dy = operands(case, device)
    leaves = [t if t is None else t.requires_grad_() for t in (x, nw, nb, weight, bias)]
    norm = (case.norm, 1e-5, case.act, 0.2, case.border)
    torch.library.opcheck(torch.ops.fastcyclegan.norm_conv_fwd, (*leaves, *norm, recompute, *case.conv, True))
    with torch.no_grad():
        _, mean, rstd, y = torch.ops.fastcyclegan.norm_conv_fwd(*leaves, *norm, recompute, *case.conv, True)
    inputs = [t if t is None else t.detach() for t in (dy, x, nw, nb, mean, rstd, weight, y)]
    needs = [True, True, bias is not None]
    torch.library.opcheck(
        torch.ops.fastcyclegan.norm_conv_bwd, (*inputs, case.act, 0.2, case.border, needs, *case.conv, True)
    )


def test_compiles_to_one_graph_and_keeps_strides(device: str) -> None:
    case = CASES[0]
    tensors, dy = operands(case, device)
    eager = results(ours(case), tensors, dy)
    compiled = results(torch.compile(ours(case), fullgraph=True), tensors, dy)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b)
        assert a.stride() == b.stride()


def test_double_backward_raises(device: str) -> None:
    tensors, _ = operands(CASES[0], device)
    x = tensors[0].requires_grad_()
    (grad,) = torch.autograd.grad(ours(CASES[0])(*tensors).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"do not support double backward .* use impl='reference'"):
        grad.sum().backward()


def test_a_border_as_large_as_the_image_raises(device: str) -> None:
    case = Case("", (1, 8, 3, 8), STRIDE_1, border=3)
    tensors, _ = operands(Case("", (1, 8, 3, 8), STRIDE_1, border=1), device)
    with pytest.raises(
        ValueError, match=r"less than the height and width of x, got border 3 and x of shape \(1, 8, 3, 8\)"
    ):
        ours(case)(*tensors)


def test_a_single_pixel_raises_as_in_torch(device: str) -> None:
    tensors, _ = operands(CASES[6], device)
    with pytest.raises(ValueError, match="Expected more than 1 spatial element when training"):
        ours(CASES[6])(tensors[0][:, :, :1, :1], *tensors[1:])


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(
    "case",
    [
        Case("block", (2, 256, 64, 64), STRIDE_1, border=1),
        Case("no norm", (2, 256, 64, 64), STRIDE_1, border=1, norm=False, act="none"),
        Case("down", (1, 64, 256, 256), STRIDE_2),
        Case("up", (1, 256, 64, 64), TRANSPOSED),
        Case("last", (1, 64, 256, 256), STRIDE_1, 7, border=3, bias=True),
    ],
    ids=lambda c: c.why,
)
def test_real_shapes(case: Case, dtype: torch.dtype, recompute: bool) -> None:
    test_equals_float64(case, dtype, recompute, "cuda")
