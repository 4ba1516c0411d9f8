"""Whether the driver takes tensor descriptors: how it is asked, when, and what is told of its answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine import summary
from fastcyclegan.kernels import _launch
from fastcyclegan.kernels import descriptor_launch as descriptors
from tests.kernels.descriptors import DRIVER, on_descriptors
from tests.planted import plant

GPU = torch.device("cuda", 0)
pytestmark = pytest.mark.usefixtures("asked_by_nobody")


@on_descriptors
def test_the_driver_says_yes(device: str) -> None:
    """On a CPU Triton's interpreter answers."""
    assert descriptors.ask_driver(torch.empty(0, device=device).device) == ""


def test_a_wrong_tile_and_an_error_are_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(
        descriptors, "copy_tile", lambda rows, row, column: torch.zeros(rows.box, dtype=rows.data.dtype)
    )
    assert descriptors.ask_driver(cpu) == "a tile of torch.bfloat16 came back wrong"

    def fail(error: Exception) -> Callable[..., Tensor]:
        def copy_tile(*_: Any) -> Tensor:
            raise error

        return copy_tile

    monkeypatch.setattr(descriptors, "copy_tile", fail(RuntimeError(DRIVER)))
    assert descriptors.ask_driver(cpu) == DRIVER.partition("\n")[0]
    dead, full = (
        RuntimeError(f"Triton Error [CUDA]: {text}")
        for text in ("an illegal memory access was encountered", "out of memory")
    )
    for error in (
        torch.OutOfMemoryError("full"),
        torch.AcceleratorError("broken"),
        KeyError("a mistake"),
        dead,
        full,
    ):
        monkeypatch.setattr(descriptors, "copy_tile", fail(error))
        with pytest.raises(type(error)):
            descriptors.ask_driver(cpu)


def test_a_kernel_that_cannot_ask_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What loads one tile does not compile: products by pointers may."""
    plant(monkeypatch, "_descriptor_copy_kernel")
    told = (
        r"^cpu: no tensor descriptors, kernels load by pointers: kernel _descriptor_copy_kernel does not"
        r" compile .*show_failure /"
    )
    with pytest.warns(RuntimeWarning, match=told):
        assert not descriptors.served(torch.device("cpu"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices whose driver was asked; each says yes."""
    log: list[torch.device] = []
    monkeypatch.setattr(descriptors, "ask_driver", lambda device: log.append(device) or "")
    monkeypatch.setattr(_launch.Chip, "of", lambda device: _launch.Chip(90))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return log


def test_the_driver_is_asked_once_a_process_and_device(asked: list[torch.device]) -> None:
    other = torch.device("cuda", 1)
    assert [descriptors.served(device) for device in (GPU, GPU, other, GPU)] == [True] * 4
    assert descriptors.refusal(torch.device("cuda")) == ""
    assert asked == [GPU, other]


def test_a_dry_run_asks_nobody(asked: list[torch.device]) -> None:
    """It assumes what the chip has, unless somebody has asked before."""
    with dry_run(chip=_launch.Chip(90)):
        assert descriptors.served(GPU)
        assert descriptors.refusal(GPU) == ""
    with dry_run(chip=_launch.Chip(80)):
        assert not descriptors.served(GPU)
    with dry_run(chip=_launch.Chip(90, descriptors=False)):
        assert not descriptors.served(GPU)
    assert asked == []
    descriptors._answers[GPU] = "refused"
    with dry_run():
        assert not descriptors.served(GPU)


def test_an_older_chip_is_not_asked(asked: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch.Chip, "of", lambda device: _launch.Chip(80))
    assert not descriptors.served(GPU)
    assert descriptors.refusal(GPU) == ""
    assert asked == []


def test_a_capture_asks_nobody_and_a_later_launch_does(
    asked: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not descriptors.served(GPU)
    assert asked == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert descriptors.served(GPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert descriptors.served(GPU)
    assert asked == [GPU]


def test_the_table_names_a_refusal(monkeypatch: pytest.MonkeyPatch, asked: list[torch.device]) -> None:
    assert summary._loads(GPU) == summary._loads(torch.device("cpu")) == ""
    descriptors._answers[GPU] = "invalid argument"
    assert (
        summary._loads(GPU)
        == "; loads use pointers, because tensor descriptors are refused (invalid argument)"
    )


@pytest.mark.gpu
def test_this_driver_takes_descriptors() -> None:
    """Where it does not, everything else holds by pointers, and this says so."""
    assert descriptors.refusal(torch.empty(0, device="cuda").device) == ""
