"""How the grids of the matrix products fill a chip at the generator's real shapes: counted from dry runs,
without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.kernels import _launch, reflect_conv2d, residual_block

BLOCK = (256, 64, 64)  # channels, height, width in the residual blocks for pictures of 256 x 256
PRODUCTS = ("_reflect_conv_kernel", "_reflect_conv_contract_kernel", "_reflect_conv_wgrad_kernel")


def _pass_of(launch: _launch.Launch) -> str:
    constants = launch.constants
    if launch.kernel == "_reflect_conv_wgrad_kernel":
        return "weight gradient"
    if launch.kernel == "_reflect_conv_contract_kernel":
        return "to few channels"
    if constants["KW"] != constants["KH"]:
        return "from few channels"
    if constants["TRANSPOSED"]:
        return "input gradient"
    return "forward, reflected" if constants["MODE"] == 0 else "forward, bordered"


def _steps(launch: _launch.Launch) -> int:
    """Return how often a program's loop runs."""
    if launch.kernel == "_reflect_conv_wgrad_kernel":
        names = [parameter.name for parameter in _launch.REGISTRY[launch.kernel].params]
        return int(launch.args[names.index("STEPS")])
    constants = launch.constants
    taps = constants["KH"] * (1 if launch.kernel == "_reflect_conv_contract_kernel" else constants["KW"])
    return int(taps * -(-constants["C"] // launch.config.constants["BLOCK_K"]))


def _run(images: int) -> None:
    C, H, W = BLOCK
    x = (
        torch.zeros(images, C, H, W, dtype=torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    )
    weights = [torch.zeros(C, C, 3, 3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    y = residual_block(x, *weights, impl="triton")
    y.backward(torch.empty_like(y))
    for channels in ((3, 64), (64, 3)):
        x = torch.zeros(images, channels[0], 4 * H, 4 * W, dtype=torch.bfloat16).requires_grad_()
        y = reflect_conv2d(
            x,
            torch.zeros(channels[1], channels[0], 7, 7, dtype=torch.bfloat16, requires_grad=True),
            padding=3,
            impl="triton",
        )
        y.backward(torch.empty_like(y))


def waves(chip: _launch.Chip = _launch.Chip()) -> Iterator[str]:
    """Yield a table: each product of a residual block and of the 7x7 layers with each of its tiles, at 1, 2
    and 4 pictures of 256 x 256.
    """
    columns = {"pass": 20, "channels": 12, "kernel": 8, "tile": 13, "warps": 7}
    in_one = "(weight gradients: of both convolutions, in one grid)"
    yield f"Blocks of {chip.multiprocessors} multiprocessors' waves, x steps of each, in bf16 {in_one}:"
    yield "".join(f"{name:<{width}}" for name, width in columns.items()) + "".join(
        f"{f'{n} images':>22}" for n in (1, 2, 4)
    )
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for images in (1, 2, 4):
        found: list[_launch.Launch] = []
        with dry_run(on_launch=found.append, all_configs=True, chip=chip):
            _run(images)
        for launch in found:
            if launch.kernel in PRODUCTS:
                c, shape = launch.constants, "x".join(map(str, launch.config.constants.values()))
                label = (
                    _pass_of(launch),
                    f"{c['C']} to {c['O']}",
                    f"{c['KH']}x{c['KW']}",
                    shape,
                    str(launch.config.num_warps),
                )
                rows.setdefault(label, {})[images] = (
                    f"{launch.grid} ({launch.grid / chip.multiprocessors:.2f}) x {_steps(launch)}"
                )
    for names, counts in sorted(rows.items()):
        cells = "".join(f"{cell:<{width}}" for cell, width in zip(names, columns.values(), strict=True))
        yield cells + "".join(f"{counts.get(n, ''):>22}" for n in (1, 2, 4))
