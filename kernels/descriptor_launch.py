"""Tensor descriptors (TMA): what the driver documents of them, whether it takes them, and launches that fall
back to pointers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import TritonError
from triton.tools.tensor_descriptor import TensorDescriptor

# The kernel registers itself.
from . import descriptor_triton as _device_code  # noqa: F401
from ._failures import REFUSED, is_no_kernels_fault
from ._launch import Config, chip, dry, launch, listing_forms


@dataclass(frozen=True)
class Rows:
    """``data`` as ``rows`` rows of ``columns`` elements, ``stride`` from one to the next, of which programs
    load tiles of ``box``.
    """

    data: Tensor
    rows: int
    columns: int
    stride: int
    box: tuple[int, int]

    @property
    def aligned(self) -> bool:
        """Whether each row begins at a multiple of 16 bytes: that depends on the caller's tensors."""
        return self.data.data_ptr() % 16 == 0 and self.stride * self.data.element_size() % 16 == 0


def fault_of(rows: Rows) -> str:
    """Return what the documentation of the driver's cuTensorMapEncodeTiled forbids in ``rows``, "" where it
    forbids nothing.

    The driver sees tiles cut to at most 128 bytes of a row (Triton does so), which changes nothing here.
    """
    size = rows.data.element_size()
    stride, inner = rows.stride * size, rows.box[1] * size
    if rows.stride < rows.columns:
        return f"rows overlap: {rows.columns} elements in each, {rows.stride} from one to the next"
    if not 0 < rows.rows <= 2**32 or not 0 < rows.columns <= 2**32:
        return f"between 1 and 2**32 rows and columns are possible, got {rows.rows} and {rows.columns}"
    if rows.data.data_ptr() % 16:
        return f"the address must be a multiple of 16, got {rows.data.data_ptr():#x}"
    if stride % 16 or stride >= 2**40:
        return f"the bytes from row to row must be a multiple of 16 below 2**40, got {stride}"
    if not all(0 < side <= 256 for side in rows.box):
        return f"the sides of a tile must be 1 to 256, got {list(rows.box)}"
    if inner % 16:
        return f"a row of a tile must have a multiple of 16 bytes, got {inner}"
    return ""


def describe(rows: Rows) -> TensorDescriptor:
    """Return the tensor descriptor of ``rows``. Raises ValueError for what the driver does not document as
    possible, on any machine.
    """
    if fault := fault_of(rows):
        raise ValueError(f"tensor descriptor of {list(rows.data.shape)}, {rows.data.dtype}: {fault}")
    return TensorDescriptor(rows.data, [rows.rows, rows.columns], [rows.stride, 1], list(rows.box))


# --- Whether the driver takes them --------------------------------------------------------------------------

# The tiles that the question is asked with: boxes of 128 bytes a row as products have them, two side by side
# and one.
QUESTIONS = ((torch.bfloat16, (64, 128)), (torch.float32, (128, 32)))
_answers: dict[torch.device, str] = {}
# Single descriptors that were refused where others serve: kernel, device and form.
_refused: set[tuple[Any, ...]] = set()


def copy_tile(rows: Rows, row: int, column: int) -> Tensor:
    """Return the tile of ``rows`` from (``row``, ``column``) on, loaded through a descriptor."""
    y = rows.data.new_empty(rows.box)
    config = Config(tuple(zip(("BLOCK_R", "BLOCK_C"), rows.box, strict=True)), 4)
    launch("_descriptor_copy_kernel", 1, (describe(rows), y, row, column), {}, config)
    return y


def tiles(device: torch.device) -> Iterator[tuple[torch.dtype, Tensor, Tensor]]:
    """Yield a dtype, a tile loaded through a descriptor, and what it must be: half of it lies past the last
    row.
    """
    for dtype, (block_r, block_c) in QUESTIONS:
        # Small integers, which all dtypes hold.
        x = (torch.arange(1024 * 256, device=device) % 251).to(dtype).view(1024, 256)
        inside = block_r // 2
        wanted = torch.zeros((block_r, block_c), dtype=dtype, device=device)
        wanted[:inside] = x[-inside:, -block_c:]
        rows = Rows(x, 1024, 256, 256, (block_r, block_c))
        yield dtype, copy_tile(rows, 1024 - inside, 256 - block_c), wanted


def ask_driver(device: torch.device) -> str:
    """Return why tensor descriptors do not serve on ``device``, "" where they do: makes some and loads
    through them.
    """
    try:
        for dtype, found, wanted in tiles(device):
            if not torch.equal(found, wanted):
                return f"a tile of {dtype} came back wrong"
    except (RuntimeError, TritonError) as error:
        if is_no_kernels_fault(error):
            # No answer: a full GPU, or one that has failed.
            raise
        return _first_line(error)
    return ""


def _numbered(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def refusal(device: torch.device) -> str:
    """Return why kernels on ``device`` do without tensor descriptors, "" where they have them or the chip has
    none.

    The driver is asked once a process and device, and a refusal is warned of once. A dry run asks nobody: ""
    where nobody has.
    """
    if chip(device).capability < 90:
        return ""
    device = _numbered(device)
    if device not in _answers and not dry():
        _answers[device] = reason = ask_driver(device)
        if reason:
            told = f"{device}: no tensor descriptors, kernels load by pointers: {reason}"
            warnings.warn(told, RuntimeWarning, stacklevel=2)
    return _answers.get(device, "")


def _captured(device: torch.device) -> bool:
    """Whether what is launched on ``device`` is being captured into a graph."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def served(device: torch.device) -> bool:
    """Whether kernels load through tensor descriptors on ``device``."""
    if chip(device).capability < 90 or not chip(device).descriptors:
        return False
    # To ask would break a capture, and pointers serve whatever the answer.
    if device not in _answers and not dry() and _captured(device):
        return False
    return not refusal(device)


# --- Launches -----------------------------------------------------------------------------------------------


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _launched(
    name: str,
    grid: int,
    operands: Sequence[Tensor | Rows],
    args: tuple[Any, ...],
    constants: Any,
    config: Config,
) -> bool:
    """Launch with descriptors; return False, and warn, where the driver refuses one of them. Other errors are
    raised.
    """
    rows = [operand for operand in operands if isinstance(operand, Rows)]
    forms = [(r.data.dtype, r.columns, r.stride, r.box) for r in rows]
    form = (name, rows[0].data.device, *forms)
    if form in _refused:
        return False
    described: list[Tensor | TensorDescriptor] = []
    for operand in operands:
        described.append(describe(operand) if isinstance(operand, Rows) else operand)
    try:
        launch(name, grid, (*described, *args), {**constants, "DESC": True}, config)
    except RuntimeError as error:
        if REFUSED not in str(error):
            raise
        _refused.add(form)
        tiles = ", ".join(f"tiles {list(r.box)} of {list(r.data.shape)}" for r in rows)
        told = f"{name} loads {tiles} by pointers: {_first_line(error)}"
        warnings.warn(told, RuntimeWarning, stacklevel=2)
        return False
    return True


def launch_operands(
    name: str,
    grid: int,
    operands: Sequence[Tensor | Rows],
    args: tuple[Any, ...],
    constants: dict[str, Any],
    config: Config,
    whole: bool,
) -> None:
    """Launch kernel ``name`` on ``operands`` and ``args``, with DESC where rows are loaded through tensor
    descriptors, else pointers.

    ``whole``: no tile needs a mask. Descriptors then serve where the chip has them, the driver takes them and
    rows are aligned. Who lists forms hears of both.
    """
    if grid == 0:
        return
    tensors = []
    for operand in operands:
        if isinstance(operand, Rows):
            whole = whole and operand.aligned
            tensors.append(operand.data)
        else:
            tensors.append(operand)
    if whole and served(tensors[0].device):
        done = _launched(name, grid, operands, args, constants, config)
        if done and not listing_forms():
            return
    launch(name, grid, (*tensors, *args), {**constants, "DESC": False}, config)
