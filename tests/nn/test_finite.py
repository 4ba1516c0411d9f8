"""Tests of finding weights that are not finite, or would not be in another dtype."""

from __future__ import annotations

import math
import re

import pytest
import torch

from fastcyclegan.errors import UserError
from fastcyclegan.nn.finite import are_finite, not_finite_in, require_representable


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    state = {
        "nets": {"G": {"weight": torch.ones(3), "count": torch.tensor(7)}},
        "optimizers": {"G": {"state": {0: {"exp_avg": torch.zeros(2)}}, "groups": [{"lr": 0.1}]}},
    }
    assert not_finite_in(state) is None
    state["optimizers"]["G"]["state"][0]["exp_avg"][1] = math.inf  # type: ignore[index]
    assert not_finite_in(state) == "optimizers.G.state.0.exp_avg contains inf"
    state["nets"]["G"]["weight"][2] = math.nan
    assert not_finite_in(state) == "nets.G.weight contains nan"
    assert not_finite_in([torch.ones(1), torch.tensor(-math.inf)]) == "1 contains -inf"


def test_flags_are_in_the_order_of_the_tensors() -> None:
    assert are_finite([]) == []
    tensors = [torch.ones(2), torch.tensor([1, math.nan]), torch.zeros(0), torch.tensor(math.inf).double()]
    assert are_finite(tensors) == [True, False, True, False]


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e5, torch.float16, "contains numbers up to 100000, but float16 ends at 65504: use a dtype with"),
        (-65520.0, torch.float16, "contains numbers up to 65520, but float16 ends at 65504"),
        (3.4e38, torch.bfloat16, "contains numbers up to 3.4e+38, but bfloat16 ends at 3.38953e+38"),
        (1e300, torch.float32, "contains numbers up to 1e+300, but float32 ends at 3.40282e+38"),
        (math.nan, torch.float16, "contains nan, so these weights cannot be used"),
        (math.inf, torch.float64, "contains inf, so these weights cannot be used"),
    ],
)
def test_weights_out_of_range_are_refused(value: float, dtype: torch.dtype, message: str) -> None:
    weights = {"a": torch.ones(2), "b": torch.tensor([0.5, value], dtype=torch.float64)}
    with pytest.raises(UserError, match=rf"^g\.pth: b {re.escape(message)}"):
        require_representable(weights, dtype, "g.pth")


def test_weights_in_range_are_accepted() -> None:
    """The largest half, numbers that round to it or to zero, and counters."""
    weights = {"a": torch.tensor([65504.0, 65519.0, 1e-30]), "count": torch.tensor(10**9)}
    require_representable(weights, torch.float16, "g.pth")
    require_representable({"a": torch.tensor([1e300], dtype=torch.float64)}, torch.float64, "g.pth")
