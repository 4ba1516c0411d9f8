"""The moments of a region, and a norm with given statistics, by each implementation.

Regions are parts of larger maps, so their rows do not follow one another in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcyclegan.kernels._norm import Norm
from fastcyclegan.kernels.region_norm import normalise_region, region_moments
from fastcyclegan.testing import PARITY_ULPS, assert_parity, relative_error

IMPLS = ["reference", "triton", "cpp"]
FP32, BF16, FP64 = torch.float32, torch.bfloat16, torch.float64
# Height, width, and the top and the left edge within the map; one pixel, one row, one column, an odd region,
# and one of several blocks of the kernels.
REGIONS = [(1, 1, 3, 2), (1, 9, 0, 0), (7, 1, 2, 8), (5, 7, 1, 1), (23, 19, 0, 4)]


@pytest.fixture(autouse=True)
def _without_gradients(no_tf32: None) -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def skip_missing(impl: str, device: str) -> None:
    if impl == "cpp" and device != "cpu":
        pytest.skip("the C++ kernels need a CPU")


def region(dtype: torch.dtype, place: tuple[int, int, int, int], device: str, C: int = 20) -> Tensor:
    """Return a part [1, C, H, W] of a map, with means that differ from 0 and from channel to channel."""
    H, W, top, left = place
    whole = torch.randn(top + H + 1, left + W + 2, C, device=device) + torch.randn(C, device=device)
    return whole.to(dtype).permute(2, 0, 1)[None, :, top : top + H, left : left + W]


@pytest.mark.parametrize("place", REGIONS)
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("impl", IMPLS)
def test_moments(impl: str, dtype: torch.dtype, place: tuple[int, int, int, int], device: str) -> None:
    skip_missing(impl, device)
    x = region(dtype, place, device)
    mean, variance = region_moments(x, impl)
    true_variance, true_mean = torch.var_mean(x.double(), dim=(2, 3), correction=0)
    plain_variance, plain_mean = torch.var_mean(x.float(), dim=(2, 3), correction=0)
    assert mean.dtype == variance.dtype == FP32
    assert mean.shape == variance.shape == (20,)
    assert_parity("mean", mean, plain_mean[0], true_mean[0], FP32)
    assert_parity("variance", variance, plain_variance[0], true_variance[0], FP32)


@pytest.mark.parametrize("impl", IMPLS)
def test_moments_of_values_far_from_zero(impl: str, device: str) -> None:
    """The sums of values and squares would leave no digit of this variance in fp32."""
    skip_missing(impl, device)
    x = region(FP32, (23, 19, 0, 4), device) + 3e3
    _, variance = region_moments(x, impl)
    expected = x.double().var(dim=(2, 3), correction=0)[0]
    # Deviations of about 1 from a mean that is rounded to half an ULP, of which a square has twice the error.
    assert relative_error(variance, expected) < 3e3 * torch.finfo(FP32).eps


NORMS = [Norm(act="none"), Norm(eps=1e-2, act="relu"), Norm(act="leaky_relu", slope=0.3)]


@pytest.mark.parametrize("is_affine", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.act)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_norm_with_the_statistics_of_another_region(
    impl: str, norm: Norm, adds: bool, is_affine: bool, device: str
) -> None:
    skip_missing(impl, device)
    mean, variance = torch.randn(20, device=device), torch.rand(20, device=device) * 3
    affine = [torch.randn(20, device=device) if is_affine else None for _ in range(2)]
    norm = Norm(*affine, norm.eps, norm.act, norm.slope)

    def plain(x: Tensor, residual: Tensor | None, dtype: torch.dtype) -> Tensor:
        weight, bias, m, v = (None if t is None else t.to(dtype) for t in (*affine, mean, variance))
        y = F.batch_norm(x.to(dtype), m, v, weight, bias, eps=norm.eps)
        y = {"none": y, "relu": y.relu(), "leaky_relu": F.leaky_relu(y, norm.slope)}[norm.act]
        return y if residual is None else y + residual.to(dtype)

    for dtype, place in ((FP32, REGIONS[3]), (BF16, REGIONS[4]), (FP32, REGIONS[0])):
        x = region(dtype, place, device)
        residual = region(dtype, place, device) if adds else None
        found = normalise_region(x, norm, mean, variance, impl, residual)
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
        expected = plain(x, residual, FP32).to(dtype)
        assert_parity("norm", found, expected, plain(x, residual, FP64), dtype)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_own_statistics_of_a_map_give_its_instance_norm(impl: str, device: str) -> None:
    skip_missing(impl, device)
    x = region(FP32, REGIONS[4], device)
    found = normalise_region(x, Norm(), *region_moments(x, impl), impl)
    assert_parity("norm", found, F.instance_norm(x), F.instance_norm(x.double()), FP32)


@pytest.mark.parametrize("impl", IMPLS)
def test_any_layout_is_accepted(impl: str, device: str) -> None:
    """An image, and a residual, can be in planes."""
    skip_missing(impl, device)
    x, residual = region(FP32, REGIONS[3], device), region(FP32, REGIONS[3], device)
    planes = [t.contiguous() for t in (x, residual)]
    statistics = region_moments(x, impl)
    for name, a, b in zip(("mean", "variance"), region_moments(planes[0], impl), statistics, strict=True):
        assert relative_error(a, b) <= PARITY_ULPS[FP32] * torch.finfo(FP32).eps, name
    expected = normalise_region(x, Norm(), *statistics, impl, residual)
    found = normalise_region(planes[0], Norm(), *statistics, impl, planes[1])
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_residual_of_another_dtype_keeps_its_digits(impl: str, device: str) -> None:
    """As PyTorch promotes them: under autocast, a map in fp32 is added to the norm of one in bf16."""
    skip_missing(impl, device)
    x, residual = region(BF16, REGIONS[3], device), region(FP32, REGIONS[3], device)
    statistics = region_moments(x, impl)
    found = normalise_region(x, Norm(act="relu"), *statistics, impl, residual)
    assert found.dtype == FP32
    assert torch.equal(found, residual + normalise_region(x, Norm(act="relu"), *statistics, impl))


def test_fp64_stays_fp64(device: str) -> None:
    x = region(FP32, REGIONS[4], device).double()
    mean, variance = region_moments(x, "reference")
    found = normalise_region(x, Norm(), mean, variance, "reference", x)
    assert mean.dtype == variance.dtype == found.dtype == FP64
    assert relative_error(found, F.instance_norm(x) + x) < 1e-14


@pytest.mark.parametrize("impl", IMPLS)
def test_what_is_not_a_number_stays_so(impl: str, device: str) -> None:
    skip_missing(impl, device)
    x = region(FP32, REGIONS[3], device)
    x[0, 4, 2, 3] = float("nan")
    mean, variance = region_moments(x, impl)
    assert mean.isnan().nonzero().flatten().tolist() == variance.isnan().nonzero().flatten().tolist() == [4]
    found = normalise_region(x, Norm(act="relu"), mean, variance, impl)
    assert found[0, 4].isnan().all()
    assert not found[0, :4].isnan().any()
