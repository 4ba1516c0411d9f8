"""Tests of the probe for tensor descriptors: how and when it runs, and how its result is reported."""

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
pytestmark = pytest.mark.usefixtures("unprobed_driver")


@on_descriptors
def test_the_driver_passes_the_probe(device: str) -> None:
    """The probe succeeds on this machine's GPU, or on a CPU in Triton's interpreter."""
    assert descriptors.probe_driver(torch.empty(0, device=device).device) == ""


def test_the_probe_fails_on_a_wrong_tile_or_a_launch_error(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(
        descriptors, "copy_tile", lambda rows, row, column: torch.zeros(rows.box, dtype=rows.data.dtype)
    )
    assert descriptors.probe_driver(cpu) == "a torch.bfloat16 tile was loaded with wrong values"

    def fail(error: Exception) -> Callable[..., Tensor]:
        def copy_tile(*_: Any) -> Tensor:
            raise error

        return copy_tile

    monkeypatch.setattr(descriptors, "copy_tile", fail(RuntimeError(DRIVER)))
    assert descriptors.probe_driver(cpu) == DRIVER.partition("\n")[0]
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
            descriptors.probe_driver(cpu)


def test_the_probe_fails_if_its_kernel_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe fails if its kernel, which loads one tile, does not compile.

    Products can still work through pointers.
    """
    plant(monkeypatch, "_descriptor_copy_kernel")
    message = (
        r"^cpu: tensor descriptors do not work, so kernels load through pointers: kernel"
        r" _descriptor_copy_kernel does not compile .*show_failure /"
    )
    with pytest.warns(RuntimeWarning, match=message):
        assert not descriptors.served(torch.device("cpu"))


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Make every probe of a driver succeed, and return a list to which each probed device is appended."""
    log: list[torch.device] = []
    monkeypatch.setattr(descriptors, "probe_driver", lambda device: log.append(device) or "")
    monkeypatch.setattr(_launch.Chip, "of", lambda device: _launch.Chip(90))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return log


def test_the_driver_is_probed_once_per_process_and_device(probed: list[torch.device]) -> None:
    other = torch.device("cuda", 1)
    assert [descriptors.served(device) for device in (GPU, GPU, other, GPU)] == [True] * 4
    assert descriptors.refusal(torch.device("cuda")) == ""
    assert probed == [GPU, other]


def test_a_dry_run_does_not_probe(probed: list[torch.device]) -> None:
    """A dry run assumes that descriptors work if the chip has them, unless an earlier probe failed."""
    with dry_run(chip=_launch.Chip(90)):
        assert descriptors.served(GPU)
        assert descriptors.refusal(GPU) == ""
    with dry_run(chip=_launch.Chip(80)):
        assert not descriptors.served(GPU)
    with dry_run(chip=_launch.Chip(90, descriptors=False)):
        assert not descriptors.served(GPU)
    assert probed == []
    descriptors._answers[GPU] = "refused"
    with dry_run():
        assert not descriptors.served(GPU)


def test_an_older_chip_is_not_probed(probed: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch.Chip, "of", lambda device: _launch.Chip(80))
    assert not descriptors.served(GPU)
    assert descriptors.refusal(GPU) == ""
    assert probed == []


def test_a_capture_does_not_probe_but_a_later_launch_does(
    probed: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not descriptors.served(GPU)
    assert probed == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert descriptors.served(GPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert descriptors.served(GPU)
    assert probed == [GPU]


def test_the_table_reports_a_refusal(monkeypatch: pytest.MonkeyPatch, probed: list[torch.device]) -> None:
    assert summary._loads(GPU) == summary._loads(torch.device("cpu")) == ""
    descriptors._answers[GPU] = "invalid argument"
    assert (
        summary._loads(GPU)
        == "; loads use pointers, because tensor descriptors do not work (invalid argument)"
    )


@pytest.mark.gpu
def test_this_driver_accepts_descriptors() -> None:
    """This machine's driver accepts tensor descriptors.

    If it does not, only this test fails, and everything else still works through pointers.
    """
    assert descriptors.refusal(torch.empty(0, device="cuda").device) == ""
