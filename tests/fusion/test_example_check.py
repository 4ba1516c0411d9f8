"""Tests of ``accelerate(net, example=x)``: all changes are undone if the outputs before and after differ."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.fusion.accelerate import accelerate
from fastcyclegan.fusion.fused_modules import FusedInstanceNorm2d
from tests.fusion.networks import Norms, assert_identical, randomised, reasons_by_path, replaced_kinds, small


class Several(Norms):
    """A network with two inputs, several outputs, random numbers and running statistics.

    Some of the outputs are not numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)

    def forward(self, x: Tensor, y: Tensor, names: list[str] | None = None) -> dict[str, Any]:
        x = self.act(self.norm(x))
        return {"sum": self.drop(self.batch(x)) + y, "parts": (x, x > 0), "names": names}


@pytest.mark.parametrize("training", [True, False])
def test_example_changes_no_state(training: bool, device: str) -> None:
    torch.manual_seed(0)
    net = randomised(Several()).to(device).train(training)
    net.requires_grad_(not training)
    plain, x = copy.deepcopy(net), torch.randn(2, 3, 6, 6, device=device)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for example in ((x, x), {"x": x, "y": x, "names": ["a"]}):
            report = accelerate(net, "triton", example=example)
            assert replaced_kinds(report)["norm"] == "InstanceNorm2d + ReLU"
            report.undo()
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training == training
    for name, value in plain.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_example_in_other_precisions(dtype: torch.dtype, device: str) -> None:
    net = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1)).to(device, dtype)
    x = torch.randn(2, 3, 6, 6, device=device, dtype=dtype)
    assert len(accelerate(net, example=x).replaced) == 1


def test_different_outputs_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All changes are undone even if the outputs differ only in eval mode."""
    for mode in (True, False):

        def wrong(self: Any, input: Tensor, mode: bool = mode) -> Tensor:
            y: Tensor = nn.InstanceNorm2d._apply_instance_norm(self, input).relu()
            return y * 1.001 if self.training == mode else y

        monkeypatch.setattr(FusedInstanceNorm2d, "_apply_instance_norm", wrong)
        torch.manual_seed(0)
        net = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU())
        plain, text = copy.deepcopy(net), repr(net)
        with pytest.warns(
            UserWarning, match="failed, so all changes were undone: output 0 of the example: relative"
        ):
            report = accelerate(net, example=torch.randn(2, 3, 6, 6))
        assert not report.replaced
        assert reasons_by_path(report)["0"].startswith("undone: output 0 of the example: relative error 1.0")
        assert repr(net) == text
        assert_identical(net, plain, torch.randn(2, 3, 6, 6))


def test_different_number_of_outputs_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FusedInstanceNorm2d, "forward", lambda self, x: [x, x])
    net = nn.Sequential(nn.InstanceNorm2d(3))
    with pytest.warns(UserWarning, match="undone: the example gives 2 outputs instead of 1"):
        accelerate(net, example=torch.randn(2, 3, 6, 6))
    assert type(net[0]) is nn.InstanceNorm2d


def test_unsupported_impl_triton_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fastcyclegan.kernels.dispatch.why_not_triton", lambda *device: "needs an NVIDIA GPU, got cpu"
    )
    net, plain = nn.Sequential(nn.InstanceNorm2d(3)), nn.Sequential(nn.InstanceNorm2d(3))
    x = torch.randn(2, 3, 6, 6)
    with pytest.warns(UserWarning, match="undone: InstanceNorm: impl='triton' needs an NVIDIA GPU, got cpu"):
        accelerate(net, "triton", example=x)
    assert_identical(net, plain, x)


def test_failing_example_raises_before_anything_is_changed() -> None:
    net, _ = small()
    text = repr(net)
    with pytest.raises(ValueError, match="cannot run the example: expected input's size at dim=1"):
        accelerate(net, example=torch.randn(1, 2, 6, 6))
    net[0].frames = (n for n in ())
    with pytest.raises(ValueError, match="cannot run the example: cannot pickle 'generator' object"):
        accelerate(net, example=torch.randn(1, 3, 6, 6))
    assert repr(net) == text
