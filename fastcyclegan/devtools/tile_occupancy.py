"""Show how well the grids of the generator's matrix products fill a chip, at the generator's real shapes.

The figures are counted in dry runs, without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.kernels import _launch, reflect_conv2d, residual_block

BLOCK = (256, 64, 64)  # channels, height and width in the residual blocks, for 256 x 256 images
COLUMNS = {"pass": 20, "channels": 12, "kernel": 8, "tile": 13, "warps": 7}
IMAGES = (1, 2, 4)
PRODUCTS = ("_reflect_conv_kernel", "_reflect_conv_contract_kernel", "_reflect_conv_wgrad_kernel")


def _pass_of(launch: _launch.Launch) -> str:
    constants = launch.constants
    if launch.kernel == "_reflect_conv_wgrad_kernel":
        return "weight gradient"
    if launch.kernel == "_reflect_conv_contract_kernel":
        return "few output channels"
    if constants["KW"] != constants["KH"]:
        return "few input channels"
    if constants["TRANSPOSED"]:
        return "input gradient"
    if constants["MODE"] == 0:
        return "forward, reflected"
    return "forward, bordered"


def _steps(launch: _launch.Launch) -> int:
    """Return the number of loop iterations in each program of ``launch``."""
    if launch.kernel == "_reflect_conv_wgrad_kernel":
        names = [parameter.name for parameter in _launch.REGISTRY[launch.kernel].params]
        return int(launch.args[names.index("STEPS")])
    constants = launch.constants
    taps = constants["KH"]
    if launch.kernel != "_reflect_conv_contract_kernel":
        taps *= constants["KW"]
    return int(taps * -(-constants["C"] // launch.config.constants["BLOCK_K"]))


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True)


def _run(images: int) -> None:
    C, H, W = BLOCK
    x = _zeros(images, C, H, W).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    y = residual_block(x, _zeros(C, C, 3, 3), _zeros(C, C, 3, 3), impl="triton")
    y.backward(torch.empty_like(y))
    for inputs, outputs in ((3, 64), (64, 3)):
        x, weight = _zeros(images, inputs, 4 * H, 4 * W), _zeros(outputs, inputs, 7, 7)
        y = reflect_conv2d(x, weight, padding=3, impl="triton")
        y.backward(torch.empty_like(y))


def waves(chip: _launch.Chip = _launch.Chip()) -> Iterator[str]:
    """Yield the lines of a table of the matrix products in a residual block and in the 7x7 layers.

    It has one row per product and tile size, and one column each for 1, 2 and 4 images of 256 x 256.
    """
    note = "(weight gradients: both convolutions in one grid)"
    yield f"Blocks (waves on {chip.multiprocessors} multiprocessors) x loop iterations, in bf16 {note}:"
    yield _line(COLUMNS, [f"{n} images" for n in IMAGES])
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for images in IMAGES:
        launches: list[_launch.Launch] = []
        with dry_run(on_launch=launches.append, all_configs=True, chip=chip):
            _run(images)
        for launch in launches:
            if launch.kernel in PRODUCTS:
                filled = launch.grid / chip.multiprocessors
                cell = f"{launch.grid} ({filled:.2f}) x {_steps(launch)}"
                rows.setdefault(_label(launch), {})[images] = cell
    for label, cells in sorted(rows.items()):
        yield _line(label, [cells.get(n, "") for n in IMAGES])


def _label(launch: _launch.Launch) -> tuple[str, ...]:
    c, config = launch.constants, launch.config
    channels, kernel = f"{c['C']} to {c['O']}", f"{c['KH']}x{c['KW']}"
    tile = "x".join(map(str, config.constants.values()))
    return _pass_of(launch), channels, kernel, tile, str(config.num_warps)


def _line(label: Iterable[str], cells: Iterable[str]) -> str:
    line = ""
    for name, width in zip(label, COLUMNS.values(), strict=True):
        line += f"{name:<{width}}"
    for cell in cells:
        line += f"{cell:>22}"
    return line
