"""Tests that torch's defaults are the usual ones where our code needs them, and the caller's afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastcyclegan.nn.torch_defaults import float32_by_default, require_device, require_dtype, usual_modes


@pytest.fixture(autouse=True)
def _same_defaults_afterwards() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_default_dtype_is_float32_inside_and_the_callers_afterwards(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    with float32_by_default():
        assert torch.zeros(1).dtype == torch.float32
    assert torch.get_default_dtype() == dtype
    with pytest.raises(KeyError), float32_by_default():
        raise KeyError
    assert torch.get_default_dtype() == dtype


def test_the_modes_are_the_usual_ones_inside_and_the_callers_afterwards() -> None:
    with torch.inference_mode(), torch.device("meta"):
        with usual_modes():
            x = torch.ones(2, requires_grad=True)
            (x * x).sum().backward()
            assert x.grad is not None
            assert x.grad.tolist() == [2, 2]
        assert torch.zeros(1).is_meta
        assert torch.is_inference_mode_enabled()
    torch.set_default_device("meta")
    with torch.no_grad():
        with usual_modes():
            assert torch.zeros(1).device.type == "cpu"
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()
        assert torch.zeros(1).is_meta


def test_valid_dtypes_and_devices_pass() -> None:
    require_dtype(torch.bfloat16, "f")
    assert require_device("cpu", "f") == require_device(torch.device("cpu"), "f") == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", None, 1.5, True])
def test_other_devices_are_refused(device: object) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"^f: device must be a name such as cpu or cuda:0, got"
    ):
        require_device(device, "f")


@pytest.mark.parametrize("dtype", ["fp16", None, float, torch.int8, torch.complex64])
def test_other_dtypes_are_refused(dtype: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^f: dtype must be"):
        require_dtype(dtype, "f")
