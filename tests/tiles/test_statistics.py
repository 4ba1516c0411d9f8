from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcyclegan.testing import relative_error
from fastcyclegan.tiles.statistics import Gathered

WHOLE = {"dim": (1, 2), "correction": 0}


def gathered(x: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Return the moments of x [C, H, W] from parts of so many ``rows``."""
    moments = Gathered()
    for part in x.split(rows, dim=1):
        variance, mean = torch.var_mean(part, **WHOLE)
        moments.add(part.shape[1] * part.shape[2], mean, variance)
    return moments.result(x)


@pytest.mark.parametrize("rows", [[30], [7, 1, 22], [10, 10, 10], [1] * 30, [29, 1]])
def test_parts_of_any_size_have_the_moments_of_the_whole(rows: list[int]) -> None:
    torch.manual_seed(0)
    # Each row has another mean, so the variance between the parts counts.
    x = torch.randn(5, 30, 11, dtype=torch.float64) + 3 * torch.randn(5, 30, 1, dtype=torch.float64)
    variance, mean = torch.var_mean(x, **WHOLE)
    found = gathered(x, rows)
    # A few roundings per part.
    assert relative_error(found[0], mean) < 1e-14
    assert relative_error(found[1], variance) < 1e-14


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    """The sums of x and of its squares would lose all digits of the variance here, even in fp64."""
    torch.manual_seed(0)
    x = torch.randn(3, 40, 16, dtype=torch.float64) + 1e9
    variance, mean = torch.var_mean(x, **WHOLE)
    found = gathered(x, [8, 15, 17])
    # The means of the parts are rounded to 1e9 eps = 2e-7, next to deviations of 1.
    assert relative_error(found[0], mean) < 1e-15
    assert relative_error(found[1], variance) < 1e-6
    by_squares = x.square().mean((1, 2)) - x.mean((1, 2)).square()
    assert relative_error(by_squares, variance) > 1e-2


def test_fp32_moments_are_joined_in_fp64() -> None:
    """A thousand parts add no error of their own to that of their moments and of the last rounding."""
    torch.manual_seed(0)
    x = torch.randn(4, 1000, 8) * 0.1 + 5
    variance, mean = torch.var_mean(x.double(), **WHOLE)
    found = gathered(x, [1] * 1000)
    assert found[0].dtype == found[1].dtype == torch.float32
    # Each mean of a part is within half an ULP of 5, and those errors are random; the sum is rounded once.
    assert relative_error(found[0], mean) < 2 * torch.finfo(torch.float32).eps
    assert relative_error(found[1], variance) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_moments_have_the_dtype_of_statistics(dtype: torch.dtype) -> None:
    moments = Gathered()
    moments.add(4, torch.tensor([1.5]), torch.tensor([2.0]))
    mean, variance = moments.result(torch.zeros(1, dtype=dtype))
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert (mean.dtype, variance.dtype) == (wanted, wanted)
    assert (mean.item(), variance.item()) == (1.5, 2.0)


def test_a_pixel_that_is_not_a_number_is_not_hidden() -> None:
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    x[1, 3, 2] = float("nan")
    mean, variance = gathered(x, [2, 2, 2])
    assert mean.isnan().tolist() == variance.isnan().tolist() == [False, True]
