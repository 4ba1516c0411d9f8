"""Compare InstanceNormAct with torch's modules: outputs, state_dict, repr, running statistics, errors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcyclegan import InstanceNormAct
from fastcyclegan.testing import assert_parity
from tests.nn.triples import DEVICE

pytestmark = pytest.mark.usefixtures("no_tf32")


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.InstanceNorm1d, (2, 5, 9)), (nn.InstanceNorm2d, (2, 5, 4, 3)), (nn.InstanceNorm3d, (1, 5, 2, 3, 2))],
)
def test_matches_torch_modules(module: type[nn.Module], shape: tuple[int, ...], impl: str) -> None:
    torch.manual_seed(0)
    original, x = module(5, eps=1e-3, affine=True).to(DEVICE), torch.randn(shape, device=DEVICE)
    nn.init.normal_(original.weight)
    ours = InstanceNormAct(5, eps=1e-3, affine=True, act="leaky_relu", slope=0.01, impl=impl).to(DEVICE)
    ours.load_state_dict(original.state_dict())
    exact, x64 = copy.deepcopy(original).double(), x.double()
    results = (ours(x, residual=x), F.leaky_relu(original(x), 0.01) + x, F.leaky_relu(exact(x64), 0.01) + x64)
    assert_parity("output", *results, torch.float32)
    assert list(ours.state_dict()) == list(original.state_dict())


def test_repr_and_defaults() -> None:
    assert (
        repr(InstanceNormAct(5))
        == f"InstanceNormAct({nn.InstanceNorm2d(5).extra_repr()}, act=none, impl=auto)"
    )
    assert "act=leaky_relu, slope=0.01" in repr(InstanceNormAct(5, act="leaky_relu", slope=0.01))


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_match_torch(training: bool) -> None:
    torch.manual_seed(0)
    original = nn.InstanceNorm2d(3, track_running_stats=True)
    ours = InstanceNormAct(3, track_running_stats=True, act="relu")
    x = torch.randn(2, 3, 4, 4)
    for module in (original, ours):
        module(x)
        module.train(training)
    torch.testing.assert_close(ours(x), F.relu(original(x)))
    assert torch.equal(ours.running_var, original.running_var)
    with pytest.raises(ValueError, match="impl='triton' does not support running statistics"):
        InstanceNormAct(3, track_running_stats=True, impl="triton")


def test_rejects_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"input must be \[N, C, L\], .* got shape \(3, 4\)"):
        InstanceNormAct(3)(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"input must have 3 channels, got shape \(1, 4, 8, 8\)"):
        InstanceNormAct(3)(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ValueError, match="act must be one of none, relu, leaky_relu, got 'gelu'"):
        InstanceNormAct(3, act="gelu")
