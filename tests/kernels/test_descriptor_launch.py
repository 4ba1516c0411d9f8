"""Tensor descriptors: what may be described, what a training step describes, and what happens where the
driver refuses.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastcyclegan.config import ModelConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine import Engine, summary
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
from fastcyclegan.testing import (
    assert_parity,
    assert_same_bits,
    make_engine,
    random_batch,
    relative_error,
    seeded_networks,
    tf32,
)
from tests.planted import plant

FP32, BF16 = torch.float32, torch.bfloat16
GPU = torch.device("cuda", 0)
OLDER = torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0)
on_descriptors = pytest.mark.skipif(OLDER, reason="this chip has no tensor descriptors")
# As backends/nvidia/driver.c of Triton writes it.
DRIVER = "Triton Error [CUDA]: Failed to create tensor map descriptor: invalid argument\nelemType=10 rank=2\n"


@dataclass
class Ear:
    """Hears of launches that are made."""

    heard: list[_launch.Launch] = field(default_factory=list)

    def launched(self, launch: _launch.Launch) -> None:
        self.heard.append(launch)

    def forms(self) -> set[bool]:
        """Whether products were launched with descriptors."""
        return {launch.constants["DESC"] for launch in self.heard if "DESC" in launch.constants}


@pytest.fixture(autouse=True)
def _asked_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows of descriptors."""
    monkeypatch.setattr(descriptors, "_answers", {})
    monkeypatch.setattr(descriptors, "_refused", set())


# --- What may be described ----------------------------------------------------------------------------------

T = torch.zeros(64, 64)
FAULTS = [
    (Rows(T, 57, 64, 8, (16, 64)), "rows overlap: 64 elements in each, 8 from one to the next"),
    (Rows(T.view(-1)[1:], 63, 64, 64, (16, 64)), "the address must be a multiple of 16"),
    (Rows(T, 10, 62, 62, (16, 32)), "the bytes from row to row must be a multiple of 16 below .*, got 248"),
    (Rows(T, 2, 64, 2**38, (16, 64)), "the bytes from row to row must be a multiple of 16 below"),
    (Rows(T, 64, 64, 64, (512, 64)), r"the sides of a tile must be 1 to 256, got \[512, 64\]"),
    (Rows(T, 64, 64, 64, (64, 512)), r"the sides of a tile must be 1 to 256, got \[64, 512\]"),
    (Rows(T, 64, 64, 64, (16, 2)), "a row of a tile must have a multiple of 16 bytes, got 8"),
    (Rows(T, 0, 64, 64, (16, 64)), r"between 1 and 2\*\*32 rows and columns are possible, got 0 and 64"),
    (Rows(T, 2**32 + 1, 64, 64, (16, 64)), "between 1 and"),
]


@pytest.mark.parametrize(("rows", "message"), FAULTS, ids=[message[:30] for _, message in FAULTS])
def test_what_the_driver_does_not_document_is_refused_on_any_machine(rows: Rows, message: str) -> None:
    with pytest.raises(ValueError, match=rf"tensor descriptor of \[.*\], torch.float32: {message}"):
        descriptors.describe(rows)


def test_rows_with_a_gap_may_be_described() -> None:
    found = descriptors.describe(Rows(T, 32, 64, 128, (16, 32)))
    assert (found.shape, found.strides, found.block_shape) == ([32, 64], [128, 1], [16, 32])


Form = tuple[torch.dtype, int, int, int, tuple[int, int]]  # dtype, rows, columns, stride, box


def descriptors_of_a_step(precision: str, batch: int, size: int = 256) -> list[TensorDescriptor]:
    """Return the descriptors of a dry training step, in every configuration."""
    # What a dry run allocates is read by nobody: gigabytes that need not be filled with NaN.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        return _descriptors_of_a_step(precision, batch, size)


def _descriptors_of_a_step(precision: str, batch: int, size: int) -> list[TensorDescriptor]:
    found: list[TensorDescriptor] = []
    nets = seeded_networks(ModelConfig(netG="resnet_1blocks", impl="triton"))
    images = random_batch(size, Plan(0, 100, 100, batch), 0)

    def note(launch: _launch.Launch) -> None:
        found.extend(a for a in launch.args if isinstance(a, TensorDescriptor))

    with tf32(True), dry_run(on_launch=note, all_configs=True):
        engine: Engine = make_engine(nets, precision=precision)
        engine.step(images, 2e-4)
    return found


def forms_of(found: list[TensorDescriptor], most: int) -> list[Form]:
    """Return the distinct forms of descriptors, each with its largest number of rows up to ``most``."""
    forms: dict[tuple[Any, ...], int] = {}
    for d in found:
        key = (d.base.dtype, d.shape[1], d.strides[0], tuple(d.block_shape))
        forms[key] = max(forms.get(key, 0), min(d.shape[0], most))
    return [(dtype, rows, *rest) for (dtype, *rest), rows in forms.items()]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_every_descriptor_of_a_training_step_is_documented(precision: str, batch: int) -> None:
    """By the numbers that reach Triton. What cuTensorMapEncodeTiled's documentation asks, and no row past its
    memory.
    """
    found = descriptors_of_a_step(precision, batch)
    assert len(found) > 20
    for d in found:
        size = d.base.element_size()
        assert d.strides[0] >= d.shape[1], "rows overlap"
        assert d.strides[0] * size % 16 == d.base.data_ptr() % 16 == 0
        assert d.strides[0] * size < 2**40
        assert all(0 < side <= 2**32 for side in d.shape)
        assert all(0 < side <= 256 for side in d.block_shape)
        assert d.block_shape[1] * size % 16 == 0
        end = d.base.data_ptr() + ((d.shape[0] - 1) * d.strides[0] + d.shape[1]) * size
        assert end <= d.base.untyped_storage().data_ptr() + d.base.untyped_storage().nbytes()


def check_loads(form: Form, device: str) -> None:
    """Make a descriptor of ``form`` and load its first and last tile: the last is past the end by half."""
    dtype, rows, columns, stride, (block_r, block_c) = form
    data = (torch.arange((rows - 1) * stride + columns, device=device) % 251).to(dtype)
    matrix = data.as_strided((rows, columns), (stride, 1))
    described = Rows(data, rows, columns, stride, (block_r, block_c))
    assert torch.equal(descriptors.copy_tile(described, 0, 0)[:rows], matrix[:block_r, :block_c])
    inside = min(rows, block_r // 2)
    last = descriptors.copy_tile(described, rows - inside, columns - block_c)
    assert torch.equal(last[:inside], matrix[-inside:, -block_c:])
    assert not last[inside:].any()


@on_descriptors
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_every_form_of_a_step_loads_what_lies_there(precision: str, device: str) -> None:
    for form in forms_of(descriptors_of_a_step(precision, 1, 64), 300):
        check_loads(form, device)


# --- Products, with and without -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    why: str
    shape: tuple[int, int, int, int]
    out: int
    kernel: int


# Whole tiles in the interpreter: 64 channels, and lines whose pitch times their number is a multiple of 32.
CASES = [
    Case("between many", (1, 64, 4, 6), 64, 3),
    Case("from few, whole steps of pixels", (2, 3, 4, 10), 64, 7),
    Case("to few", (1, 64, 4, 10), 3, 7),
]
# For a GPU: the generator's.
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
    """Yield each result by descriptors and by pointers; the descriptors are really there."""
    tensors = operands(case, device, dtype)
    runs = [convolve, block] if case.shape[1] == case.out else [convolve]
    for run in runs:
        described, pointed = Ear(), Ear()
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
def test_pointers_and_descriptors_give_the_same(case: Case, device: str) -> None:
    """But for the last bits in the interpreter: NumPy's sums follow how a tile lies in memory."""
    for one, other in by_both(case, device, FP32):
        assert relative_error(one, other) < 1e-6


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.why)
def test_without_descriptors_all_products_hold(
    case: Case, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """The driver refuses: parity as ever, no launch has a descriptor, one warning."""
    monkeypatch.setattr(descriptors, "ask_driver", lambda device: DRIVER.partition("\n")[0])
    ear, (x, w, dy) = Ear(), operands(case, device, FP32)
    runs: list[tuple[Any, Any]] = [(convolve, reflect_conv2d_ref)]
    runs += [(block, residual_block_ref)] if case.shape[1] == case.out else []
    with tf32(False), warnings.catch_warnings(record=True) as caught, _launch.observe(ear):
        warnings.simplefilter("always")
        for run, reference in runs:
            found, other = run(x, w, dy, impl="triton"), run(x, w, dy, op=reference)
            truth = run(x.double(), w.double(), dy.double(), op=reference)
            for name, result in found.items():
                assert_parity(name, result, other[name], truth[name], FP32)
    assert ear.forms() == {False}
    assert not any(isinstance(a, TensorDescriptor) for launch in ear.heard for a in launch.args)
    (warning,) = (str(w.message) for w in caught if "descriptor" in str(w.message))
    assert warning.endswith(
        f"no tensor descriptors, kernels load by pointers: {DRIVER.partition(chr(10))[0]}"
    )


def test_windows_of_pixels_are_never_described() -> None:
    """Their rows overlap: forward from few channels, input gradient to few, and one operand of both weight
    gradients.
    """
    found: list[_launch.Launch] = []
    with dry_run(on_launch=found.append):
        for case in REAL[1:]:
            convolve(*operands(case, "cpu", BF16), impl="triton")
    windows = [
        launch
        for launch in found
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


# --- One descriptor that is refused -------------------------------------------------------------------------


def a_product(device: str) -> Tensor:
    """64 channels to 64, one by one, of an image that is its own border: one launch, by descriptors."""
    torch.manual_seed(0)
    x = torch.randn(1, 64, 4, 8, device=device).contiguous(memory_format=torch.channels_last)
    return host.product(Pixels.of(x), torch.randn(1, 64, 1, 1, 64, device=device), (4, 8))


def failing(message: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception] = RuntimeError) -> None:
    """Let every product by descriptors fail with ``message``, as the launch of one does on a GPU."""

    def launch(name: str, grid: int, args: Any, constants: dict[str, Any], config: Any) -> None:
        if constants.get("DESC"):
            raise error(message)
        _launch.launch(name, grid, args, constants, config)

    monkeypatch.setattr(descriptors, "launch", launch)


@on_descriptors
def test_a_refused_descriptor_is_a_pointer_from_then_on(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    wanted, ear = a_product(device), Ear()
    failing(DRIVER, monkeypatch)
    with (
        _launch.observe(ear),
        pytest.warns(
            RuntimeWarning, match=r"_reflect_conv_kernel loads tiles .* by pointers: .*invalid argument$"
        ),
    ):
        found = a_product(device)
    assert relative_error(found, wanted) < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a_product(device)
    assert ear.forms() == {False}


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
def test_rows_that_overlap_are_an_error_and_no_fallback(device: str) -> None:
    """A mistake of ours must not hide behind the pointers."""
    x = torch.zeros(64, 64, device=device)
    with pytest.raises(ValueError, match="rows overlap"):
        descriptors.launch_operands(
            "_reflect_conv_kernel", 1, [Rows(x, 10, 64, 8, (16, 64))], (), {}, _launch.Config((), 4), True
        )


def test_a_tensor_of_the_callers_that_is_not_aligned_is_a_pointer(device: str) -> None:
    wanted, ear = a_product(device), Ear()
    odd = torch.empty(64 * 64 + 1, device=device)[1:].view(1, 64, 1, 1, 64)
    torch.manual_seed(0)
    x = torch.randn(1, 64, 4, 8, device=device).contiguous(memory_format=torch.channels_last)
    odd.copy_(torch.randn(1, 64, 1, 1, 64, device=device))
    with _launch.observe(ear):
        found = host.product(Pixels.of(x), odd, (4, 8))
    assert ear.forms() == {False}
    assert relative_error(found, wanted) < 1e-6


def test_no_images_describe_nothing(device: str) -> None:
    x = torch.zeros(0, 64, 4, 8, device=device).contiguous(memory_format=torch.channels_last)
    assert host.product(Pixels.of(x), torch.zeros(1, 64, 1, 1, 64, device=device), (4, 8)).shape == (
        0,
        64,
        4,
        8,
    )


# --- Asking the driver --------------------------------------------------------------------------------------
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


def test_the_gate_compiles_both_forms_and_a_step_lists_one() -> None:
    x, w = torch.zeros(1, 256, 64, 64, dtype=BF16), torch.zeros(256, 256, 3, 3, dtype=BF16)

    def forms(**options: Any) -> list[tuple[Any, bool]]:
        found: list[_launch.Launch] = []
        with dry_run(on_launch=found.append, **options):
            convolve(x, w, torch.zeros_like(x), impl="triton")
        return [
            (launch.config, launch.constants["DESC"])
            for launch in found
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


def test_the_table_names_a_refusal(monkeypatch: pytest.MonkeyPatch, asked: list[torch.device]) -> None:
    assert summary._loads(GPU) == summary._loads(torch.device("cpu")) == ""
    descriptors._answers[GPU] = "invalid argument"
    assert summary._loads(GPU) == "; tensor descriptors refused (invalid argument): pointers"


# --- On a GPU -----------------------------------------------------------------------------------------------


@on_descriptors
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_driver_takes_every_descriptor_of_a_training_step(precision: str) -> None:
    """At its real sizes, for 8 images: each form is made for real, and loads what lies there."""
    for form in forms_of(descriptors_of_a_step(precision, 8), 2**32):
        check_loads(form, "cuda")


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
    # The first of each list: what is measured is another question, and takes longer.
    monkeypatch.setattr(_tiles, "choose", lambda name, key, configs, device, run: configs[0])
    for one, other in by_both(case, "cuda", dtype):
        assert_same_bits("by descriptors and by pointers", one, other)


@pytest.mark.gpu
def test_this_driver_takes_descriptors() -> None:
    """Where it does not, everything else holds by pointers, and this says so."""
    assert descriptors.refusal(torch.empty(0, device="cuda").device) == ""
