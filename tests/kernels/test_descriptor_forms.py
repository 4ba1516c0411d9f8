"""All tensor descriptors that a training step makes are valid, and invalid ones are rejected.

Validity is checked against the driver's documentation, and by loading through the descriptors.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from fastcyclegan.config import ModelConfig
from fastcyclegan.data.sample_plan import Plan
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.engine import Engine
from fastcyclegan.kernels import _launch
from fastcyclegan.kernels import descriptor_launch as descriptors
from fastcyclegan.kernels.descriptor_launch import Rows
from fastcyclegan.testing import make_engine, random_batch, seeded_networks, tf32
from tests.kernels.descriptors import on_descriptors

pytestmark = pytest.mark.usefixtures("unprobed_driver")

T = torch.zeros(64, 64)
FAULTS = [
    (Rows(T, 57, 64, 8, (16, 64)), "rows overlap: each has 64 elements, but they are 8 apart"),
    (Rows(T.view(-1)[1:], 63, 64, 64, (16, 64)), "the address must be a multiple of 16"),
    (Rows(T, 10, 62, 62, (16, 32)), "the row stride in bytes must be a multiple of 16 below .*, got 248"),
    (Rows(T, 2, 64, 2**38, (16, 64)), "the row stride in bytes must be a multiple of 16 below"),
    (Rows(T, 64, 64, 64, (512, 64)), r"the sides of a tile must be from 1 to 256, got \[512, 64\]"),
    (Rows(T, 64, 64, 64, (64, 512)), r"the sides of a tile must be from 1 to 256, got \[64, 512\]"),
    (Rows(T, 64, 64, 64, (16, 2)), "a row of a tile must be a multiple of 16 bytes long, got 8"),
    (Rows(T, 0, 64, 64, (16, 64)), r"there must be 1 to 2\*\*32 rows and columns, got 0 and 64"),
    (Rows(T, 2**32 + 1, 64, 64, (16, 64)), "there must be 1 to"),
]


@pytest.mark.parametrize(("rows", "message"), FAULTS, ids=[message[:30] for _, message in FAULTS])
def test_invalid_descriptors_are_rejected_on_any_machine(rows: Rows, message: str) -> None:
    with pytest.raises(ValueError, match=rf"tensor descriptor of \[.*\], torch.float32: {message}"):
        descriptors.describe(rows)


def test_rows_with_gaps_are_valid() -> None:
    described = descriptors.describe(Rows(T, 32, 64, 128, (16, 32)))
    assert (described.shape, described.strides, described.block_shape) == ([32, 64], [128, 1], [16, 32])


# --- Descriptors of a training step -------------------------------------------------------------------------

Form = tuple[torch.dtype, int, int, int, tuple[int, int]]  # dtype, rows, columns, stride, box


def descriptors_of_a_step(precision: str, batch: int, size: int = 256) -> list[TensorDescriptor]:
    """Run a training step as a dry run, and return the tensor descriptors of all configurations."""
    # Nothing reads the gigabytes that a dry run allocates, so they need not be filled with NaN.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        return _descriptors_of_a_step(precision, batch, size)


def _descriptors_of_a_step(precision: str, batch: int, size: int) -> list[TensorDescriptor]:
    made: list[TensorDescriptor] = []
    nets = seeded_networks(ModelConfig(netG="resnet_1blocks", impl="triton"))
    images = random_batch(size, Plan(0, 100, 100, batch), 0)

    def record(launch: _launch.Launch) -> None:
        made.extend(a for a in launch.args if isinstance(a, TensorDescriptor))

    with tf32(True), dry_run(on_launch=record, all_configs=True):
        engine: Engine = make_engine(nets, precision=precision)
        engine.step(images, 2e-4)
    return made


def forms_of(made: list[TensorDescriptor], most: int) -> list[Form]:
    """Return the distinct forms of the descriptors in ``made``.

    Descriptors that differ only in their number of rows count as one form, which gets the largest of these
    numbers, but at most ``most``.
    """
    forms: dict[tuple[Any, ...], int] = {}
    for d in made:
        key = (d.base.dtype, d.shape[1], d.strides[0], tuple(d.block_shape))
        forms[key] = max(forms.get(key, 0), min(d.shape[0], most))
    return [(dtype, rows, *rest) for (dtype, *rest), rows in forms.items()]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_every_descriptor_of_a_training_step_is_valid(precision: str, batch: int) -> None:
    """The descriptors that are passed to Triton meet the conditions documented for cuTensorMapEncodeTiled.

    In addition, no row extends past its memory.
    """
    made = descriptors_of_a_step(precision, batch)
    assert len(made) > 20
    for d in made:
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
    """Make a descriptor of ``form``, load its first and last tile, and check their values.

    Half of the last tile is past the end of the rows and must be loaded as zeros.
    """
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
def test_every_form_of_a_training_step_loads_the_right_values(precision: str, device: str) -> None:
    for form in forms_of(descriptors_of_a_step(precision, 1, 64), 300):
        check_loads(form, device)


@on_descriptors
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_driver_accepts_every_descriptor_of_a_training_step(precision: str) -> None:
    """A descriptor of every form can be created on the GPU and loads the expected values.

    The sizes are those of a training step with 8 images.
    """
    for form in forms_of(descriptors_of_a_step(precision, 8), 2**32):
        check_loads(form, "cuda")
