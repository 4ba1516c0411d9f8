"""Tests of the operators' twins, which compute the operators with PyTorch if a kernel fails.

The kernels' own tests run here while PyTorch computes every operator. So the twins obey the parity rule in
every mode, in the dtypes of those tests' cases, and their results have the memory layouts that the operators'
fake implementations promise (opcheck).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fastcyclegan.kernels import _fallback, _launch, _operator, _plain
from fastcyclegan.testing import tf32
from tests.kernels import (
    test_instance_norm,
    test_instance_norm_operator,
    test_reflect_conv,
    test_reflect_conv_operator,
    test_zero_conv,
    test_zero_conv_operator,
    zero_convs,
)
from tests.kernels import test_norm_conv as norm_convs
from tests.kernels import test_residual_block as blocks

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def _all_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make PyTorch compute every operator, and make launching a kernel an error."""

    def run_plain(op: str, run: Any, plain: Callable[..., Any], args: Any, required: bool) -> Any:
        return plain(*args)

    for module in (_fallback, _operator):
        monkeypatch.setattr(module, "run_or_fall_back", run_plain)
    # A kernel that is launched anyway raises an error.
    monkeypatch.setattr(_launch, "REGISTRY", dict.fromkeys(_launch.REGISTRY))
    with tf32(False):
        yield


def test_every_operator_has_a_twin_with_the_same_arguments() -> None:
    assert len(_operator.BODIES) == 10
    for name, body in _operator.BODIES.items():
        twin = getattr(_plain, name.removeprefix("fastcyclegan::"))
        assert list(inspect.signature(twin).parameters) == list(inspect.signature(body).parameters)


MODULES = {
    "instance_norm": test_instance_norm,
    "reflect_conv": test_reflect_conv,
    "residual_block": blocks,
    "zero_conv": test_zero_conv,
}
CASES = [
    pytest.param(module, case, dtype, id=f"{name}: {case.why}-{dtype}")
    for name, module in MODULES.items()
    for case in module.CASES
    for dtype in case.dtypes
]


@pytest.mark.parametrize(("module", "case", "dtype"), CASES)
def test_equals_float64(module: Any, case: Any, dtype: torch.dtype, device: str) -> None:
    module.test_equals_float64(case, dtype, device)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(c, d, id=f"{c.why}-{d}") for c in norm_convs.CASES for d in c.dtypes]
)
def test_norm_conv_equals_float64(case: Any, dtype: torch.dtype, recompute: bool, device: str) -> None:
    norm_convs.test_equals_float64(case, dtype, recompute, device)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize(("channels", "out", "kernel", "tanh"), [(20, 3, 7, True), (12, 16, 3, False)])
def test_norm_before_and_tanh_after(
    channels: int, out: int, kernel: int, tanh: bool, dtype: torch.dtype, recompute: bool, device: str
) -> None:
    test_reflect_conv.test_norm_before_and_tanh_after(channels, out, kernel, tanh, dtype, recompute, device)


@pytest.mark.parametrize("case", [zero_convs.UP, zero_convs.LAST], ids=lambda c: c.why)
def test_y_can_be_saved(case: Any, device: str) -> None:
    test_zero_conv.test_y_may_be_kept(case, device)


def test_frozen_weights_change_nothing_for_the_others(device: str) -> None:
    case = zero_convs.Case("", (3, 9, 4, 5), 10, P=3)
    x, weights, _, dy = zero_convs.operands(case, device)
    whole = zero_convs.results(zero_convs.by_pytorch(case), x, weights, [], dy)
    leaves = [w.requires_grad_(i != 1) for i, w in enumerate(weights)]
    gradients = torch.autograd.grad(zero_convs.ours(case)(x, leaves, []), [leaves[0], leaves[2]], dy)
    for gradient, i in zip(gradients, (0, 2), strict=True):
        torch.testing.assert_close(gradient, whole[f"dweight[{i}]"])
    for frozen in ((1,), (0,), (1, 2)):
        for norm in (True, False):
            norm_convs.test_frozen_members_change_nothing_for_the_others(frozen, norm, device)


def test_flat_images_and_a_large_offset(device: str) -> None:
    """The twins pass the kernels' tests with flat images and with a mean that is far from 0.

    A rounding error in the mean would be multiplied by 316.
    """
    for planes in (True, False):
        test_instance_norm.test_flat_images_become_exactly_zero(planes, torch.float16, device)
    test_instance_norm.test_mean_of_a_thousand_deviations(13, device)
    blocks.test_flat_images_and_a_large_offset(device)


def test_empty_batches(device: str) -> None:
    test_instance_norm.test_no_images(13, device)
    test_reflect_conv.test_no_images(device)
    blocks.test_no_images(device)
    for case in zero_convs.ROUTES:
        test_zero_conv.test_no_images(case, device)


@pytest.mark.parametrize("recompute", [True, False])
def test_autocast_changes_no_dtype(recompute: bool, device: str) -> None:
    """Under autocast, the twins' results have the same dtypes as without it.

    PyTorch's operators would each choose their own dtype there.
    """
    test_instance_norm_operator.test_autocast_leaves_the_dtype_of_the_input(device)
    test_reflect_conv_operator.test_autocast_casts_as_convolutions_do(device)
    blocks.test_any_layout_and_autocast(device)
    case = norm_convs.Case("", (1, 9, 6, 7), norm_convs.STRIDE_1, border=1)
    (x, weight, *_), _ = norm_convs.operands(case, device, torch.float16)
    arguments = (x, None, None, weight, None, True, 1e-5, "relu", 0.2, 1, recompute, *case.conv, False)
    plain = torch.ops.fastcyclegan.norm_conv_fwd(*arguments)
    with torch.autocast(device, torch.bfloat16):
        cast = torch.ops.fastcyclegan.norm_conv_fwd(*arguments)
    for result, expected in zip(cast, plain, strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)


def test_opcheck(device: str) -> None:
    test_instance_norm_operator.test_opcheck(True, False, device)
    test_reflect_conv_operator.test_opcheck_with_norm_and_tanh(False, device)
    blocks.test_opcheck(device)
    test_zero_conv_operator.test_opcheck(zero_convs.LAST, True, device)
    norm_convs.test_opcheck(norm_convs.CASES[3], False, device)


def test_results_are_identical_when_repeated_or_computed_alone(device: str) -> None:
    test_instance_norm.test_same_bits_twice_and_alone((3, 20, 13, 11), device)
