"""Products give equal results with and without descriptors, and fall back if the driver rejects one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.kernels import (
    _launch,
    _tiles,
    reflect_conv2d,
    reflect_conv2d_ref,
    residual_block,
    residual_block_ref,
)
from fastcyclegan.kernels import _products as host
from fastcyclegan.kernels import descriptor_launch as descriptors
from fastcyclegan.kernels.border_launch import Pixels
from fastcyclegan.kernels.descriptor_launch import Rows
from fastcyclegan.testing import assert_parity, assert_same_bits, relative_error, tf32
from tests.kernels.descriptors import DRIVER, LaunchRecorder, on_descriptors

FP32, BF16 = torch.float32, torch.bfloat16
pytestmark = pytest.mark.usefixtures("unprobed_driver")


@dataclass(frozen=True)
class Case:
    why: str
    shape: tuple[int, int, int, int]
    out: int
    kernel: int


# These sizes give whole tiles in the interpreter: 64 channels, and a product of lines and pitch that is a
# multiple of 32.
CASES = [
    Case("between many", (1, 64, 4, 6), 64, 3),
    Case("from few, whole steps of pixels", (2, 3, 4, 10), 64, 7),
    Case("to few", (1, 64, 4, 10), 3, 7),
]
# The sizes of the generator's layers, for tests on a GPU.
REAL = [
    Case("residual", (2, 256, 64, 64), 256, 3),
    Case("first", (2, 3, 256, 256), 64, 7),
    Case("last", (2, 64, 256, 256), 3, 7),
]


def operands(case: Case, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    N, C, H, W = case.shape
    x, dy = (torch.randn(N, c, H, W, device=device, dtype=dtype) for c in (C, case.out))
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    return x, torch.randn(case.out, C, case.kernel, case.kernel, device=device, dtype=dtype), dy


def convolve(
    x: Tensor, w: Tensor, dy: Tensor, op: Callable[..., Tensor] = reflect_conv2d, **options: Any
) -> dict[str, Tensor]:
    x, w = (t.detach().requires_grad_() for t in (x, w))
    y = op(x, w, padding=w.shape[2] // 2, **options)
    y.backward(dy)
    assert x.grad is not None
    assert w.grad is not None
    return {"y": y.detach(), "dx": x.grad, "dweight": w.grad}


def block(
    x: Tensor, w: Tensor, dy: Tensor, op: Callable[..., Tensor] = residual_block, **options: Any
) -> dict[str, Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, w, w.flip(0))]
    y = op(*leaves, **options)
    y.backward(dy)
    return {"y": y.detach(), **{f"d{i}": leaf.grad for i, leaf in enumerate(leaves) if leaf.grad is not None}}


def by_both(case: Case, device: str, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Compute the case with descriptors and with pointers, and yield each result as a pair of the two.

    Asserts that descriptors and pointers were really used.
    """
    tensors = operands(case, device, dtype)
    runs = [convolve, block] if case.shape[1] == case.out else [convolve]
    for run in runs:
        described, pointed = LaunchRecorder(), LaunchRecorder()
        with tf32(True):
            with _launch.observe(described):
                by_descriptor = run(*tensors, impl="triton")
            with _launch.observe(pointed), pytest.MonkeyPatch.context() as patch:
                patch.setattr(descriptors, "served", lambda device: False)
                by_pointer = run(*tensors, impl="triton")
        assert True in described.forms()
        assert pointed.forms() == {False}
        yield from ((result, by_pointer[name]) for name, result in by_descriptor.items())


@on_descriptors
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_pointers_and_descriptors_give_the_same_results(case: Case, device: str) -> None:
    """Products give the same results with descriptors and with pointers, up to rounding.

    In the interpreter the last bits can differ, because NumPy's sums depend on a tile's memory layout.
    """
    for one, other in by_both(case, device, FP32):
        assert relative_error(one, other) < 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_all_products_are_right_without_descriptors(
    case: Case, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """If the driver rejects descriptors, results obey the parity rule and no launch uses a descriptor.

    Exactly one warning is given.
    """
    monkeypatch.setattr(descriptors, "probe_driver", lambda device: DRIVER.partition("\n")[0])
    recorder, (x, w, dy) = LaunchRecorder(), operands(case, device, FP32)
    runs: list[tuple[Any, Any]] = [(convolve, reflect_conv2d_ref)]
    runs += [(block, residual_block_ref)] if case.shape[1] == case.out else []
    with tf32(False), warnings.catch_warnings(record=True) as caught, _launch.observe(recorder):
        warnings.simplefilter("always")
        for run, reference in runs:
            got, baseline = run(x, w, dy, impl="triton"), run(x, w, dy, op=reference)
            truth = run(x.double(), w.double(), dy.double(), op=reference)
            for name, result in got.items():
                assert_parity(name, result, baseline[name], truth[name], FP32)
    assert recorder.forms() == {False}
    assert not any(isinstance(a, TensorDescriptor) for launch in recorder.launches for a in launch.args)
    (warning,) = (str(w.message) for w in caught if "descriptor" in str(w.message))
    assert warning.endswith(
        f"tensor descriptors do not work, so kernels load through pointers: {DRIVER.partition(chr(10))[0]}"
    )


def test_windows_of_pixels_never_use_descriptors() -> None:
    """Products that read windows of pixels load them through pointers, because the rows of windows overlap.

    Windows are read by the forward pass with few input channels, by the input gradient of a convolution with
    few output channels, and as one operand of the weight gradients of both.
    """
    launches: list[_launch.Launch] = []
    with dry_run(on_launch=launches.append):
        for case in REAL[1:]:
            convolve(*operands(case, "cpu", BF16), impl="triton")
    windows = [
        launch
        for launch in launches
        if "DESC" in launch.constants and launch.constants.get("XS", 64) < launch.constants["C"]
    ]
    assert {(launch.kernel, launch.constants["DESC"]) for launch in windows} == {
        ("_reflect_conv_kernel", False),
        ("_reflect_conv_wgrad_kernel", False),
        ("_reflect_conv_wgrad_kernel", True),
    }
    for launch in windows:
        if launch.kernel == "_reflect_conv_wgrad_kernel":
            assert isinstance(launch.args[1], Tensor)


def test_the_gate_lists_both_forms_and_a_training_step_lists_one() -> None:
    x, w = torch.zeros(1, 256, 64, 64, dtype=BF16), torch.zeros(256, 256, 3, 3, dtype=BF16)

    def forms(**options: Any) -> list[tuple[Any, bool]]:
        launches: list[_launch.Launch] = []
        with dry_run(on_launch=launches.append, **options):
            convolve(x, w, torch.zeros_like(x), impl="triton")
        return [
            (launch.config, launch.constants["DESC"])
            for launch in launches
            if launch.kernel == "_reflect_conv_wgrad_kernel"
        ]

    assert {form for _, form in forms(all_configs=True)} == {True}
    configs = {config for config, _ in forms(all_configs=True)}
    assert len(configs) > 1
    assert set(forms(all_configs=True, all_forms=True)) == {
        (config, form) for config in configs for form in (True, False)
    }
    assert [form for _, form in forms()] == [True]
    assert not any(form for _, form in forms(all_configs=True, chip=_launch.Chip(80)))


# --- A rejected descriptor ----------------------------------------------------------------------------------


def a_product(device: str) -> Tensor:
    """Compute a 1x1 convolution from 64 to 64 channels, without a border, in one launch with descriptors."""
    torch.manual_seed(0)
    x = torch.randn(1, 64, 4, 8, device=device).contiguous(memory_format=torch.channels_last)
    return host.product(Pixels.of(x), torch.randn(1, 64, 1, 1, 64, device=device), (4, 8))


def failing(message: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception] = RuntimeError) -> None:
    """Make every launch that uses descriptors fail with ``message``, the way it would fail on a GPU."""

    def launch(name: str, grid: int, args: Any, constants: dict[str, Any], config: Any) -> None:
        if constants.get("DESC"):
            raise error(message)
        _launch.launch(name, grid, args, constants, config)

    monkeypatch.setattr(descriptors, "launch", launch)


@on_descriptors
def test_a_rejected_descriptor_falls_back_to_pointers_for_good(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    expected, recorder = a_product(device), LaunchRecorder()
    failing(DRIVER, monkeypatch)
    with (
        _launch.observe(recorder),
        pytest.warns(
            RuntimeWarning, match=r"_reflect_conv_kernel loads tiles .* through pointers: .*invalid argument$"
        ),
    ):
        result = a_product(device)
    assert relative_error(result, expected) < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a_product(device)
    assert recorder.forms() == {False}


@on_descriptors
@pytest.mark.parametrize(
    "message", ["CUDA error: an illegal memory access", "Triton Error [CUDA]: out of memory"]
)
def test_other_errors_of_a_launch_are_raised(
    message: str, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    failing(message, monkeypatch)
    with pytest.raises(RuntimeError, match=message.replace("[", r"\[")):
        a_product(device)


@on_descriptors
def test_overlapping_rows_are_an_error_and_do_not_fall_back(device: str) -> None:
    """Overlapping rows raise an error, because falling back to pointers would hide a bug in this package."""
    x = torch.zeros(64, 64, device=device)
    with pytest.raises(ValueError, match="rows overlap"):
        descriptors.launch_operands(
            "_reflect_conv_kernel", 1, [Rows(x, 10, 64, 8, (16, 64))], (), {}, _launch.Config((), 4), True
        )


def test_an_unaligned_tensor_is_read_through_pointers(device: str) -> None:
    expected, recorder = a_product(device), LaunchRecorder()
    odd = torch.empty(64 * 64 + 1, device=device)[1:].view(1, 64, 1, 1, 64)
    torch.manual_seed(0)
    x = torch.randn(1, 64, 4, 8, device=device).contiguous(memory_format=torch.channels_last)
    odd.copy_(torch.randn(1, 64, 1, 1, 64, device=device))
    with _launch.observe(recorder):
        result = host.product(Pixels.of(x), odd, (4, 8))
    assert recorder.forms() == {False}
    assert relative_error(result, expected) < 1e-6


def test_no_images_need_no_descriptor(device: str) -> None:
    x = torch.zeros(0, 64, 4, 8, device=device).contiguous(memory_format=torch.channels_last)
    assert host.product(Pixels.of(x), torch.zeros(1, 64, 1, 1, 64, device=device), (4, 8)).shape == (
        0,
        64,
        4,
        8,
    )


# --- On a GPU -----------------------------------------------------------------------------------------------


@on_descriptors
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, BF16) for case in REAL), (REAL[1], FP32)],
    ids=lambda v: getattr(v, "why", str(v)),
)
def test_pointers_and_descriptors_give_the_same_bits(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Use the first configuration of each list. Measuring them would take longer and is not tested here.
    monkeypatch.setattr(_tiles, "choose", lambda name, key, configs, device, run: configs[0])
    for one, other in by_both(case, "cuda", dtype):
        assert_same_bits("descriptors and pointers", one, other)
