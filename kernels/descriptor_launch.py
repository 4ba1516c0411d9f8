"""Launch kernels with tensor descriptors (TMA), or with pointers if descriptors are not available.

This module checks the conditions that the driver documents, probes whether the driver accepts descriptors,
and falls back to pointers.
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

# Imported so that the kernel is registered.
from . import descriptor_triton as _device_code  # noqa: F401
from ._failures import REFUSED, is_external_error
from ._launch import Config, chip, dry, launch, listing_forms


@dataclass(frozen=True)
class Rows:
    """A matrix in memory, from which programs load tiles of ``box``.

    ``data`` holds ``rows`` rows of ``columns`` elements, and rows are ``stride`` elements apart.
    """

    data: Tensor
    rows: int
    columns: int
    stride: int
    box: tuple[int, int]

    @property
    def aligned(self) -> bool:
        """Whether each row begins at a multiple of 16 bytes. This depends on the caller's tensors."""
        return self.data.data_ptr() % 16 == 0 and self.stride * self.data.element_size() % 16 == 0


def fault_of(rows: Rows) -> str:
    """Return why the driver's cuTensorMapEncodeTiled cannot describe ``rows``, or "" if it can.

    The conditions are those given in its documentation. Triton splits tiles, so the driver sees at most 128
    bytes of a row; this does not change the result.
    """
    size = rows.data.element_size()
    stride, inner = rows.stride * size, rows.box[1] * size
    if rows.stride < rows.columns:
        return f"rows overlap: each has {rows.columns} elements, but they are {rows.stride} apart"
    if not 0 < rows.rows <= 2**32 or not 0 < rows.columns <= 2**32:
        return f"there must be 1 to 2**32 rows and columns, got {rows.rows} and {rows.columns}"
    if rows.data.data_ptr() % 16:
        return f"the address must be a multiple of 16, got {rows.data.data_ptr():#x}"
    if stride % 16 or stride >= 2**40:
        return f"the row stride in bytes must be a multiple of 16 below 2**40, got {stride}"
    if not all(0 < side <= 256 for side in rows.box):
        return f"the sides of a tile must be from 1 to 256, got {list(rows.box)}"
    if inner % 16:
        return f"a row of a tile must be a multiple of 16 bytes long, got {inner}"
    return ""


def describe(rows: Rows) -> TensorDescriptor:
    """Return the tensor descriptor of ``rows``.

    Raises ValueError, on any machine, if the driver's documentation does not allow such a descriptor.
    """
    if fault := fault_of(rows):
        raise ValueError(f"tensor descriptor of {list(rows.data.shape)}, {rows.data.dtype}: {fault}")
    return TensorDescriptor(rows.data, [rows.rows, rows.columns], [rows.stride, 1], list(rows.box))


# --- Whether the driver accepts them ------------------------------------------------------------------------

# Tiles with which the driver is probed. As in matrix products, a row of a box has 128 bytes. The first tile
# consists of two boxes side by side, and the second of one.
PROBES = ((torch.bfloat16, (64, 128)), (torch.float32, (128, 32)))
_answers: dict[torch.device, str] = {}
# Keys (kernel, device, form) of launches whose descriptors a driver refused although it accepts others.
_refused: set[tuple[Any, ...]] = set()


def copy_tile(rows: Rows, row: int, column: int) -> Tensor:
    """Load the tile of ``rows`` that begins at (``row``, ``column``) through a descriptor."""
    y = rows.data.new_empty(rows.box)
    config = Config(tuple(zip(("BLOCK_R", "BLOCK_C"), rows.box, strict=True)), 4)
    launch("_descriptor_copy_kernel", 1, (describe(rows), y, row, column), {}, config)
    return y


def tiles(device: torch.device) -> Iterator[tuple[torch.dtype, Tensor, Tensor]]:
    """Yield a dtype, a tile loaded through a descriptor, and the expected tile, for each of PROBES.

    Half of each tile is past the last row.
    """
    for dtype, (block_r, block_c) in PROBES:
        # Small integers, which every dtype represents exactly.
        x = (torch.arange(1024 * 256, device=device) % 251).to(dtype).view(1024, 256)
        inside = block_r // 2
        expected = torch.zeros((block_r, block_c), dtype=dtype, device=device)
        expected[:inside] = x[-inside:, -block_c:]
        rows = Rows(x, 1024, 256, 256, (block_r, block_c))
        yield dtype, copy_tile(rows, 1024 - inside, 256 - block_c), expected


def probe_driver(device: torch.device) -> str:
    """Return why tensor descriptors do not work on ``device``, or "" if they do.

    This creates a few descriptors and loads tiles through them.
    """
    try:
        for dtype, tile, expected in tiles(device):
            if not torch.equal(tile, expected):
                return f"a {dtype} tile was loaded with wrong values"
    except (RuntimeError, TritonError) as error:
        if is_external_error(error):
            # The GPU is full or has failed, which says nothing about descriptors.
            raise
        return _first_line(error)
    return ""


def _numbered(device: torch.device) -> torch.device:
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def refusal(device: torch.device) -> str:
    """Return why tensor descriptors do not work on ``device``, or "" if they work.

    Also returns "" if the chip does not support them. The driver is probed once per process and device, and a
    warning is issued if the probe fails. In a dry run it is not probed: the result is "" unless an earlier
    probe failed.
    """
    if chip(device).capability < 90:
        return ""
    device = _numbered(device)
    if device not in _answers and not dry():
        _answers[device] = reason = probe_driver(device)
        if reason:
            message = f"{device}: tensor descriptors do not work, so kernels load through pointers: {reason}"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
    return _answers.get(device, "")


def _is_capturing(device: torch.device) -> bool:
    """Return whether launches on ``device`` are being captured into a graph."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def served(device: torch.device) -> bool:
    """Return whether kernels load through tensor descriptors on ``device``."""
    if chip(device).capability < 90 or not chip(device).descriptors:
        return False
    # Probing would break a capture, and pointers always work.
    if device not in _answers and not dry() and _is_capturing(device):
        return False
    return not refusal(device)


# --- Launches -----------------------------------------------------------------------------------------------


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _launch_described(
    name: str,
    grid: int,
    operands: Sequence[Tensor | Rows],
    args: tuple[Any, ...],
    constants: Any,
    config: Config,
) -> bool:
    """Launch a kernel with descriptors, and return whether that worked.

    If the driver refuses one of the descriptors, this warns once and returns False. Other errors are raised.
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
        message = f"{name} loads {tiles} through pointers: {_first_line(error)}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
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
    """Launch kernel ``name``, which loads rows through tensor descriptors if possible, otherwise pointers.

    The kernel receives ``operands``, then ``args``, and a constant DESC that is True for descriptors.
    ``whole`` means that no tile needs a mask. Descriptors are used if ``whole`` is True, the chip supports
    them, the driver accepts them and all rows are aligned. In a dry run that lists all forms, the kernel is
    launched both ways.
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
        launched = _launch_described(name, grid, operands, args, constants, config)
        if launched and not listing_forms():
            return
    launch(name, grid, (*tensors, *args), {**constants, "DESC": False}, config)
