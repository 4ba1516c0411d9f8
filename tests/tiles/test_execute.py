"""Tiles compute what the whole image gives, for every architecture, and give their memory back.

``run_plan`` also checks that each pixel of a map and of the result is written once, and that what is read is
always a pixel of the right map.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcyclegan.errors import UserError
from fastcyclegan.nn.as_trained import mask_keys, masks_from
from fastcyclegan.nn.networks import set_impl
from fastcyclegan.testing import assert_parity
from fastcyclegan.tiles.calls import Calls
from fastcyclegan.tiles.divide import Plan
from fastcyclegan.tiles.execute import Ends, Execution, Progress
from fastcyclegan.tiles.plan import plan
from fastcyclegan.tiles.storage import FileRows, TensorRows
from tests.tiles.networks import RESNETS, SEQUENCES, UNETS, resnet, seeded, unet
from tests.tiles.whole import image, in_double, run_plan, tiled

# PyTorch warns that an even kernel may need a copy.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

# Errors of fp64 grow with the depth, and a norm over few pixels enlarges them; outputs are about 1.
FP64 = 1e-10
FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def _one_image() -> Iterator[None]:
    with torch.no_grad(), masks_from(mask_keys(0, ["image"])):
        yield


def image_for(net: nn.Module, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    return image(size, getattr(net, "arguments", {}).get("input_nc", 3), dtype)


def planned(net: nn.Module, x: Tensor, tile: int) -> Plan:
    """Return the plan for ``tile``, or for the least tile if that one is smaller than the halo."""
    try:
        return plan(net, x.shape[1], (x.shape[2], x.shape[3]), tile)
    except UserError as error:
        least = re.search(r"the least is (\d+)", str(error))
        if least is None:
            raise
    return plan(net, x.shape[1], (x.shape[2], x.shape[3]), int(least[1]))


def check(net: nn.Module, size: tuple[int, int], tile: int) -> None:
    net = in_double(net)
    x = image_for(net, size)
    truth, result = net(x), run_plan(planned(net, x, tile), x)
    assert result.shape == truth.shape
    assert (result - truth).abs().max() <= FP64


# One tile, one row and one column of tiles, tiles that do and do not divide the sides, and the smallest ones.
@pytest.mark.parametrize(("size", "tile"), [((8, 8), 64), ((12, 52), 12), ((68, 36), 20), ((36, 44), 8)])
@pytest.mark.parametrize("name", RESNETS)
def test_resnets(name: str, size: tuple[int, int], tile: int) -> None:
    check(seeded(RESNETS[name]), size, tile)


@pytest.mark.parametrize(("size", "tile"), [((64, 64), 200), ((64, 192), 20), ((128, 64), 32)])
@pytest.mark.parametrize("name", UNETS)
def test_unets(name: str, size: tuple[int, int], tile: int) -> None:
    check(seeded(UNETS[name]), size, tile)


@pytest.mark.parametrize(("size", "tile"), [((33, 47), 64), ((45, 34), 9), ((34, 61), 20)])
@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str, size: tuple[int, int], tile: int) -> None:
    check(seeded(SEQUENCES[name]), size, tile)


# --- Precisions and kernels ---------------------------------------------------------------------------------

ALL = {
    **{f"resnet {name}": make for name, make in RESNETS.items()},
    **{f"unet {name}": make for name, make in UNETS.items()},
    **{f"sequence {name}": make for name, make in SEQUENCES.items()},
}


@pytest.mark.parametrize("name", ALL)
def test_fp32(name: str) -> None:
    """The error against fp64 is at most twice that of the whole image in fp32, plus a few ULP."""
    net = seeded(ALL[name])
    double = in_double(net)
    x = image_for(net, (64, 64))
    truth, whole = double(x), net(x.float())
    result = run_plan(planned(net, x, 20), x.float())
    assert_parity(name, result, whole, truth, FP32)
    # A bound for users, which no architecture comes near: its outputs are about 1.
    assert (result - whole).abs().max() <= 1e-4 * max(1.0, truth.abs().max().item())


SMALL = {"resnet": resnet(n_blocks=1, affine=True), "unet": unet(use_dropout=True)}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("impl", ["triton", "cpp"])
def test_kernels(impl: str, name: str) -> None:
    net = seeded(SMALL[name])
    double = in_double(net)
    x = image_for(net, (24, 32) if name == "resnet" else (32, 64))
    truth, plain = double(x), net(x.float())
    set_impl(net, impl)
    assert_parity("tiles", run_plan(planned(net, x, 20), x.float(), impl), plain, truth, FP32)


@pytest.mark.parametrize("name", ["resnet affine", "resnet batch", "unet five", "resnet as trained"])
@pytest.mark.parametrize("impl", ["reference", "cpp"])
def test_bf16(impl: str, name: str) -> None:
    """Under autocast, the error against fp64 is at most twice that of the whole image under autocast.

    Both round every map to bf16 once, at the same places, so their errors have the same distribution.
    """
    net = seeded(ALL[name])
    double = in_double(net)
    x = image_for(net, (64, 64))
    truth = double(x)
    set_impl(net, impl)
    with torch.autocast("cpu", BF16):
        whole = net(x.float())
        result = run_plan(planned(net, x, 20), x.float(), impl)
    assert result.dtype == whole.dtype
    assert_parity(name, result, whole, truth, BF16)


# --- Weights, memory and progress ---------------------------------------------------------------------------


def test_weights_are_read_anew_in_each_run() -> None:
    net = in_double(seeded(resnet(affine=True, upsample="resize", downsample="antialias")))
    x = image_for(net, (24, 32))
    one_plan = plan(net, 3, (24, 32), 12)
    before = run_plan(one_plan, x)
    for p in net.parameters():
        p.add_(0.1 * torch.randn_like(p))
    changed = run_plan(one_plan, x)
    assert not torch.equal(before, changed)
    assert (changed - net(x)).abs().max() <= FP64
    for p in net.parameters():
        p.data = torch.randn_like(p)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight = nn.Parameter(module.weight * 2)
        if hasattr(module, "filt"):
            module.filt = module.filt * 1.5
    assert (run_plan(one_plan, x) - net(x)).abs().max() <= FP64


def test_no_gradient_is_recorded() -> None:
    net, x = seeded(resnet(n_blocks=1)), image((16, 16), dtype=FP32)
    with torch.enable_grad():
        result = tiled(net, x, 8)
    assert not result.requires_grad


class BrokenTileError(RuntimeError):
    pass


@pytest.mark.parametrize("calls", [1, 20, 60])
def test_an_error_gives_all_memory_back(calls: int) -> None:
    """Nothing keeps the maps, wherever a tile fails; the memory itself is gone even while the error lives."""
    net, x = seeded(resnet(n_blocks=2)), image((32, 32), dtype=FP32)
    kept: list[TensorRows] = []
    left = [calls]

    def allocate(shape: Any, dtype: torch.dtype) -> TensorRows:
        rows = TensorRows(shape, dtype, torch.device("cpu"))
        kept.append(rows)
        return rows

    def progress(progress: Progress) -> None:
        left[0] -= 1
        if not left[0]:
            raise BrokenTileError

    execution = Execution(plan(net, 3, (32, 32), 8), Calls("reference"), x.device, allocate)
    ends = Ends(lambda w: x[:, :, slice(*w[0]), slice(*w[1])], lambda window, y: None, progress)
    with pytest.raises(BrokenTileError):
        execution.run(ends)
    for rows in kept:
        with pytest.raises(AssertionError):
            rows.read(((0, 1), (0, 1)))
    assert kept


def test_memory_is_given_back_as_soon_as_no_pass_reads_it() -> None:
    """At no time is more allocated than the layout counts."""
    net, x = seeded(unet()), image((64, 64), dtype=FP32)
    live: dict[int, int] = {}

    class Counted(TensorRows):
        def __init__(self, shape: Any, dtype: torch.dtype) -> None:
            super().__init__(shape, dtype, torch.device("cpu"))
            live[id(self)] = shape[0] * shape[1] * shape[2]

        def close(self) -> None:
            del live[id(self)]
            super().close()

    execution = Execution(plan(net, 3, (64, 64), 16), Calls("reference"), x.device, Counted)

    def progress(progress: Progress) -> None:
        assert sum(live.values()) <= execution.layout.elements(progress.number - 1)

    execution.run(Ends(lambda w: x[:, :, slice(*w[0]), slice(*w[1])], lambda window, y: None, progress))
    assert not live


@pytest.mark.parametrize("half", [False, True])
def test_maps_in_a_file_give_the_same_bits(half: bool, tmp_path: Path) -> None:
    net, x = seeded(resnet(affine=True)), image((40, 32), dtype=FP32)
    one_plan = plan(net, 3, (40, 32), 12)
    parts: dict[Any, Tensor] = {}
    kept: list[torch.dtype] = []

    def allocate(shape: tuple[int, int, int], dtype: torch.dtype) -> FileRows:
        kept.append(dtype)
        return FileRows(shape, dtype, tmp_path)

    ends = Ends(lambda w: x[:, :, slice(*w[0]), slice(*w[1])], parts.__setitem__)
    with torch.autocast("cpu", BF16, enabled=half):
        Execution(one_plan, Calls("reference"), x.device, allocate).run(ends)
        expected = run_plan(one_plan, x)
    assert set(kept) == {BF16 if half else FP32}
    for window, part in parts.items():
        assert torch.equal(part, expected[:, :, slice(*window[0]), slice(*window[1])])
    assert not list(tmp_path.iterdir())


def test_progress_counts_passes_and_tiles() -> None:
    net, x = seeded(resnet(n_blocks=1)), image((24, 32), dtype=FP32)
    one_plan = plan(net, 3, (24, 32), 12)
    seen: list[Progress] = []
    execution = Execution(one_plan, Calls("reference"), x.device, lambda s, d: TensorRows(s, d, x.device))
    execution.run(Ends(lambda w: x[:, :, slice(*w[0]), slice(*w[1])], lambda window, y: None, seen.append))
    expected = [
        (number, len(one_plan.passes), tile, one.tiles)
        for number, one in enumerate(one_plan.passes, start=1)
        for tile in range(1, one.tiles + 1)
    ]
    assert [(p.number, p.passes, p.tile, p.tiles) for p in seen] == expected
    shares = [p.share for p in seen]
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] == pytest.approx(1.0)
