"""Tensors of another shape, dtype, layout or range are refused before their memory is touched."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastcyclegan.files.schema import MisfitError
from fastcyclegan.files.tensor_rules import plain_tensor, tensor
from tests.files.altered_values import unusual

RULE = tensor((2, 3), torch.float32, low=0.0, high=1.0)
HALVES = torch.full((2, 3), 0.5)
ODD = "is not a plain tensor: it is sparse, quantized or nested, or has no data"
REFUSED: list[tuple[str, Any]] = [
    ("must be a tensor, got a list", HALVES.tolist()),
    ("has the shape [3, 2] instead of [2, 3]", HALVES.view(3, 2)),
    ("has the shape of 9 dimensions instead of [2, 3]", torch.zeros((1,) * 9)),
    ("has the dtype float64 instead of float32", HALVES.double()),
    ("has the dtype complex64 instead of float32", HALVES.to(torch.complex64)),
    (ODD, HALVES.to_sparse()),
    (ODD, HALVES.to("meta")),
    (ODD, unusual(lambda: torch.quantize_per_tensor(HALVES, 0.1, 0, torch.qint8))),
    (ODD, unusual(lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]))),
    ("claims more memory than the file has", torch.zeros(1).expand(2**30, 2**30)),
    ("contains values that are not finite", HALVES.where(HALVES.new_ones(2, 3).tril() > 0, math.nan)),
    ("contains values that are not finite", HALVES.where(HALVES.new_ones(2, 3).tril() > 0, -math.inf)),
    ("has values from -0.5 to -0.5, but they must be from 0 to 1", -HALVES),
]


@pytest.mark.parametrize(("problem", "value"), REFUSED, ids=[row[0] for row in REFUSED])
def test_unsuitable_tensors(problem: str, value: Any) -> None:
    with pytest.raises(MisfitError) as error:
        RULE(value, "x")
    assert str(error.value) == f"x {problem}"


def test_suitable_tensors() -> None:
    RULE(HALVES, "x")
    RULE(HALVES.T.contiguous().T, "x")
    RULE(HALVES.clone().requires_grad_(), "x")
    tensor((0,), torch.float32)(torch.zeros(0), "x")
    tensor((), torch.int64, low=0)(torch.tensor(3), "x")
    assert plain_tensor(HALVES, "x") is HALVES
