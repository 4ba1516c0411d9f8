"""Tests of what is told about the implementation of each layer."""

from __future__ import annotations

import pytest
import torch

from fastcyclegan import Generator, UnetGenerator, reference
from fastcyclegan.kernels.cpu import choice
from fastcyclegan.nn.layer_table import convolutions_computed_by, describe_convolutions


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(1, 3, 32, 32)


def test_required_kernels(x: torch.Tensor) -> None:
    names = convolutions_computed_by(Generator(ngf=8, n_blocks=2, impl="cpp").eval(), x)
    assert list(names) == [
        *("model.1", "model.4", "model.7"),
        *(f"model.{block}.conv_block.{conv}" for block in (10, 11) for conv in (1, 5)),
        *("model.12", "model.15", "model.19"),
    ]
    assert list(names.values()) == [
        "wide",
        "PyTorch",
        "PyTorch",
        *["winograd"] * 4,
        "PyTorch",
        "PyTorch",
        "few",
    ]
    assert describe_convolutions(names) == "1 wide, 4 PyTorch, 4 winograd, 1 few"


def test_the_table_of_the_processor_decides(x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "is_faster", lambda op, dtype, k, *_: k == 7)
    names = convolutions_computed_by(Generator(ngf=8, n_blocks=1).eval(), x)
    assert describe_convolutions(names) == "1 wide, 6 PyTorch, 1 few"


def test_networks_of_pytorch(x: torch.Tensor) -> None:
    for net in (reference.Generator(ngf=8, n_blocks=1), Generator(ngf=8, n_blocks=1, impl="reference")):
        assert set(convolutions_computed_by(net.eval(), x).values()) == {"PyTorch"}
    names = convolutions_computed_by(UnetGenerator(num_downs=5, ngf=8, impl="cpp").eval(), x)
    assert len(names) == 10
    assert names["model.model.0"] == "wide"
