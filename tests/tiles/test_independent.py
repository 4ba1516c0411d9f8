"""Tiles that are translated independently cover the image and fade into each other, without jumps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastcyclegan.errors import UserError
from fastcyclegan.testing import assert_same_bits
from fastcyclegan.tiles.independent import blended, check, positions, ramp, rounded, spans

# (tile, overlap, multiple): no overlap, the largest one, one that is rounded up, and grids of 1, 4 and 16.
TILINGS = [(8, 0, 4), (8, 4, 4), (16, 8, 4), (20, 5, 4), (12, 4, 4), (5, 2, 1), (2, 1, 1), (32, 1, 16)]
# Sides in units of the grid: below, equal to, and just above all of these tiles, and several tiles.
STEPS = [1, 2, 3, 4, 5, 6, 7, 11, 14]
# The largest error of an interpolation a + w (b - a), or b - (1 - w) (b - a), in fp32 for values in [-1, 1].
# There are five operations, including the division for w. Each rounds a value of at most 2 by half an ULP.
ROUNDING = 5 * torch.finfo(torch.float32).eps


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Image:
    """What ``finished`` got, in the order of the calls."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Tensor]] = []

    def __call__(self, first: int, rows: Tensor) -> None:
        self.parts.append((first, rows))

    def joined(self) -> Tensor:
        """Return the image. Fails unless the rows came in order, each once."""
        row = 0
        for first, rows in self.parts:
            assert first == row
            assert rows.shape[1] > 0
            row += rows.shape[1]
        return torch.cat([rows for _, rows in self.parts], dim=1)


def result(size: tuple[int, int], tiling: tuple[int, int, int], translate: Callable[..., Tensor]) -> Tensor:
    image = Image()
    blended(size, *tiling, translate, image)
    return image.joined()


def cut_from(image: Tensor) -> Callable[[int, int, int, int], Tensor]:
    return lambda top, bottom, left, right: image[:, top:bottom, left:right]


def constants(seed: int = 1) -> Callable[[int, int, int, int], Tensor]:
    """Return a translation to one random number in [-1, 1] per tile."""
    values = iter(noise(10_000, seed=seed))
    return lambda top, bottom, left, right: next(values).expand(3, bottom - top, right - left)


# --- Positions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiling", TILINGS)
def test_tiles_cover_an_axis_on_the_grid(tiling: tuple[int, int, int]) -> None:
    tile, overlap, multiple = tiling
    for size in range(multiple, 8 * tile, multiple):
        starts = positions(size, *tiling)
        side = min(tile, size)
        assert (starts[0], starts[-1] + side) == (0, size)
        assert all(start % multiple == 0 for start in starts)
        steps = [after - before for before, after in itertools.pairwise(starts)]
        step = tile - rounded(overlap, multiple)
        assert tile - step >= overlap
        assert steps[:-1] == [step] * len(steps[:-1])
        assert all(0 < last <= step for last in steps[-1:])


def test_examples_of_positions() -> None:
    assert positions(100, 100, 20, 4) == [0]
    assert positions(104, 100, 20, 4) == [0, 4]
    assert positions(180, 100, 20, 4) == [0, 80]
    assert positions(184, 100, 18, 4) == [0, 80, 84]
    assert positions(24, 8, 0, 4) == [0, 8, 16]
    assert positions(4, 8, 4, 4) == [0]


@pytest.mark.parametrize(("size", "tile"), [(10, 8), (12, 10), (0, 8)])
def test_sides_off_the_grid_are_refused(size: int, tile: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 4, got {size} and {tile}"):
        positions(size, tile, 4, 4)


@pytest.mark.parametrize("tiling", TILINGS)
def test_seams_are_disjoint_and_at_least_as_wide_as_the_overlap(tiling: tuple[int, int, int]) -> None:
    """So every pixel of an axis depends on one tile or two, which is what makes all steps small."""
    tile, overlap, multiple = tiling
    for size in range(multiple, 8 * tile, multiple):
        found = spans(size, *tiling)
        assert (found[0].first, found[0].full) == (0, 0)
        for before, after in itertools.pairwise(found):
            assert before.full <= after.first <= after.full == before.end
            assert after.start <= after.first
            assert after.full - after.first >= overlap


def test_the_last_tile_fades_in_where_the_tile_before_the_last_is_alone() -> None:
    """Three tiles cover [84, 100), where the first one still fades into the second."""
    first, second, last = spans(184, 100, 20, 4)
    assert (first.end, second.first, second.full) == (100, 80, 100)
    assert (last.start, last.first, last.full, last.end) == (84, 100, 180, 184)


def test_a_ramp_has_equal_steps() -> None:
    weights = ramp(7, torch.empty(0))
    assert weights.tolist() == [0.125 * n for n in range(1, 8)]
    assert len(ramp(0, weights)) == 0


def test_a_ramp_in_16_bits_counts_all_pixels() -> None:
    """Neither float16 nor bfloat16 has all whole numbers up to 4000."""
    for dtype in (torch.float16, torch.bfloat16):
        weights = ramp(4000, torch.empty(0, dtype=dtype))
        exact = torch.arange(1, 4001, dtype=torch.float64) / 4001
        assert weights.dtype == dtype
        # The nearest number in 16 bits, but for the rounding to fp32 before it.
        assert ((weights.double() - exact).abs() <= exact * torch.finfo(dtype).eps * 0.51).all()


# --- Images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiling", TILINGS)
def test_tiles_of_an_image_give_the_image_exactly(tiling: tuple[int, int, int]) -> None:
    """Where two tiles agree, the interpolation a + w (b - a) has no rounding, because b - a is 0."""
    multiple = tiling[-1]
    for number, steps in enumerate(itertools.product(STEPS, STEPS)):
        height, width = (step * multiple for step in steps)
        image = noise(3, height, width, seed=number)
        assert_same_bits(f"{height}x{width}", result((height, width), tiling, cut_from(image)), image)


@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e-30])
def test_a_constant_stays_exactly_constant(value: float) -> None:
    found = result((44, 28), (16, 8, 4), lambda t, b, le, r: torch.full((3, b - t, r - le), value))
    assert_same_bits("constant", found, torch.full((3, 44, 28), value))


def test_without_overlap_tiles_lie_side_by_side_bit_for_bit() -> None:
    tiles = {(top, left): noise(3, 8, 8, seed=top + left) for top in (0, 8, 16) for left in (0, 8)}
    tiles[0, 8][0, 0, 0] = math.inf  # nothing is computed from the neighbours, or this would become NaN
    found = result((24, 16), (8, 0, 4), lambda top, bottom, left, right: tiles[top, left])
    rows = [torch.cat([tiles[top, 0], tiles[top, 8]], dim=2) for top in (0, 8, 16)]
    assert_same_bits("tiles", found, torch.cat(rows, dim=1))


@pytest.mark.parametrize("tiling", [(16, 8, 4), (20, 5, 4), (5, 2, 1), (8, 0, 4)])
@pytest.mark.parametrize("steps", [(3, 11), (14, 11), (13, 3)])
def test_weights_are_not_negative_and_sum_to_one(
    tiling: tuple[int, int, int], steps: tuple[int, int]
) -> None:
    """The weights of a tile are what comes out if it is 1, and all others are 0."""
    height, width = (step * tiling[-1] for step in steps)
    rows, columns = (positions(side, *tiling) for side in (height, width))
    total = torch.zeros(1, height, width, dtype=torch.float64)
    for chosen in itertools.product(rows, columns):

        def one(top: int, bottom: int, left: int, right: int, chosen: tuple[int, int] = chosen) -> Tensor:
            return torch.full((1, bottom - top, right - left), float((top, left) == chosen))

        weights = result((height, width), tiling, one)
        assert weights.min() >= 0
        assert 0 < weights.max() <= 1
        total += weights
    # At most four tiles have a weight at a pixel, each from two interpolations.
    assert (total - 1).abs().max() <= 4 * 2 * ROUNDING


@pytest.mark.parametrize("tiling", [(16, 8, 4), (20, 5, 4), (16, 4, 4), (5, 2, 1), (7, 3, 1)])
@pytest.mark.parametrize("steps", [(3, 6), (11, 14), (17, 3)])
def test_seams_have_no_jumps(tiling: tuple[int, int, int], steps: tuple[int, int]) -> None:
    """If tiles differ by D, neighbouring pixels differ by at most D / (overlap + 1)."""
    height, width = (step * tiling[-1] for step in steps)
    values: list[float] = []
    translate = constants()

    def kept(*box: int) -> Tensor:
        tile = translate(*box)
        values.append(tile[0, 0, 0].item())
        return tile

    found = result((height, width), tiling, kept)
    assert min(values) <= found.min() <= found.max() <= max(values)
    difference = max(values) - min(values)
    for dim in (1, 2):
        # Each of the two pixels comes from two interpolations.
        allowed = difference / (tiling[1] + 1) + 2 * 2 * ROUNDING
        assert found.diff(dim=dim).abs().max() <= allowed


@pytest.mark.parametrize("tiling", [(16, 8, 4), (16, 4, 4), (5, 2, 1), (7, 3, 1)])
def test_the_seams_of_the_last_three_tiles_do_not_add_up(tiling: tuple[int, int, int]) -> None:
    """The worst case: tiles of -1, then tiles of 1, changing at each of the seams, for all last tiles."""
    tile, overlap, multiple = tiling
    for size in range(tile + multiple, 4 * tile, multiple):
        for change in positions(size, *tiling)[1:]:

            def step(top: int, bottom: int, left: int, right: int, change: int = change) -> Tensor:
                return torch.full((1, bottom - top, right - left), 1.0 if top >= change else -1.0)

            line = result((size, multiple), tiling, step)[0, :, 0]
            assert (line[0], line[-1]) == (-1, 1)
            assert (line.diff() >= 0).all()
            assert line.diff().max() <= 2 / (overlap + 1) + 2 * ROUNDING


@pytest.mark.parametrize("transposed", [False, True])
def test_a_seam_is_linear(transposed: bool) -> None:
    """Tiles of -1 and 1 overlap in 8 pixels, so all 9 steps are 2 / 9. Elsewhere they do not change."""
    size = (24, 8) if transposed else (8, 24)
    values = iter((-1.0, 1.0))
    found = result(size, (16, 8, 4), lambda t, b, le, r: torch.full((1, b - t, r - le), next(values)))
    line = found[0].T if transposed else found[0]
    ramp_of_eight = torch.arange(1, 9, dtype=torch.float64) * 2 / 9 - 1
    exact = torch.cat([-torch.ones(8), ramp_of_eight, torch.ones(8)])
    assert (line - exact).abs().max() <= ROUNDING
    assert (line[:, :8] == -1).all()
    assert (line[:, 16:] == 1).all()


def test_both_axes_are_blended_alike() -> None:
    """A transposed image has the transposed result, up to the order of the interpolations."""
    size, tiling = (44, 28), (16, 8, 4)
    starts = list(itertools.product(positions(44, *tiling), positions(28, *tiling)))
    values = dict(zip(starts, noise(len(starts)).tolist(), strict=True))
    found = result(size, tiling, lambda t, b, le, r: torch.full((1, b - t, r - le), values[t, le]))
    other = result(size[::-1], tiling, lambda t, b, le, r: torch.full((1, b - t, r - le), values[le, t]))
    assert found.std() > 0.1
    # Each of the two results comes from two interpolations.
    assert (found - other.mT).abs().max() <= 2 * 2 * ROUNDING


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_tiles(dtype: torch.dtype) -> None:
    image = noise(2, 24, 20).to(dtype)
    assert_same_bits("image", result((24, 20), (16, 8, 4), cut_from(image)), image)


# --- Calls --------------------------------------------------------------------------------------------------


def test_every_tile_is_translated_once_and_reported() -> None:
    size, tiling = (44, 28), (16, 8, 4)
    boxes: list[tuple[int, ...]] = []
    shares: list[float] = []

    def translate(*box: int) -> Tensor:
        assert len(shares) == len(boxes)
        boxes.append(box)
        return torch.zeros(3, 16, 16)

    blended(size, *tiling, translate, Image(), shares.append)
    corners = itertools.product(positions(44, *tiling), positions(28, *tiling))
    assert boxes == [(top, top + 16, left, left + 16) for top, left in corners]
    assert shares == [n / len(boxes) for n in range(1, len(boxes) + 1)]


def test_rows_are_passed_on_before_the_next_band_is_translated() -> None:
    """The rows above the next tile are final, and only those."""
    events: list[tuple[str, int, int]] = []

    def translate(top: int, bottom: int, left: int, right: int) -> Tensor:
        events.append(("tile", top, bottom))
        return torch.zeros(1, bottom - top, right - left)

    def finished(first: int, rows: Tensor) -> None:
        events.append(("rows", first, first + rows.shape[1]))

    blended((36, 8), 16, 8, 4, translate, finished)
    assert events == [
        *(("tile", 0, 16), ("rows", 0, 8)),
        *(("tile", 8, 24), ("rows", 8, 16)),
        *(("tile", 16, 32), ("rows", 16, 24)),
        *(("tile", 20, 36), ("rows", 24, 36)),
    ]


def test_the_translation_may_reuse_its_result_and_record_gradients() -> None:
    """As a CUDA graph does, whose result is overwritten by its next call."""
    image = noise(3, 44, 28)
    buffer = torch.empty(3, 16, 16)

    def translate(top: int, bottom: int, left: int, right: int) -> Tensor:
        with torch.inference_mode():
            return buffer.copy_(image[:, top:bottom, left:right])

    found = result((44, 28), (16, 8, 4), translate)
    assert_same_bits("image", found, image)
    image.requires_grad_()
    assert not result((44, 28), (16, 8, 4), lambda *box: cut_from(image)(*box) * 1).requires_grad


def test_errors_of_the_callbacks_are_raised() -> None:
    def failing(*_: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        blended((44, 28), 16, 8, 4, constants(), failing)


# --- Memory -------------------------------------------------------------------------------------------------


class Alive(TorchDispatchMode):
    """Keeps the largest number of bytes that tensors held at a time, of those made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[StorageWeakRef, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **({} if kwargs is None else kwargs))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.sizes[StorageWeakRef(storage)] = storage.nbytes()
        self.sizes = {storage: size for storage, size in self.sizes.items() if not storage.expired()}
        self.most = max(self.most, sum(self.sizes.values()))
        return found


def peak(size: tuple[int, int], tiling: tuple[int, int, int]) -> int:
    """Return the most bytes that the blending and one tile at a time need."""
    alive = Alive()
    with alive:
        blended(size, *tiling, lambda t, b, le, r: torch.rand(3, b - t, r - le), lambda first, rows: None)
    return alive.most


@pytest.mark.parametrize("tiling", [(16, 0, 4), (16, 8, 4), (20, 4, 4)])
def test_memory_is_that_of_two_bands_and_a_tile(tiling: tuple[int, int, int]) -> None:
    """A band, the seam of the band before, and a tile; for every position of the last tile."""
    tile, width = tiling[0], 160
    for height in range(5 * tile, 6 * tile, 4):
        rows = max(span.end - span.first + span.full - span.first for span in spans(height, *tiling))
        assert rows < 2 * tile
        ramps = 2 * tile  # the weights, and the numbers that they are computed from
        assert peak((height, width), tiling) <= 4 * (3 * rows * width + 3 * tile**2 + ramps)


def test_memory_does_not_depend_on_the_height_of_the_image() -> None:
    assert peak((1616, 32), (16, 0, 4)) == peak((80, 32), (16, 0, 4))


# --- Flags --------------------------------------------------------------------------------------------------


def test_sides_are_rounded_up_to_the_grid() -> None:
    assert [rounded(side, 4) for side in (0, 1, 4, 5, 255, 256)] == [0, 4, 4, 8, 256, 256]


@pytest.mark.parametrize(
    ("tile", "overlap", "multiple"), [*TILINGS, (250, 124, 4), (512, 256, 256), (10**30, 64, 4), (9, 4, 4)]
)
def test_values_that_can_be_used_are_accepted(tile: int, overlap: int, multiple: int) -> None:
    check(tile, overlap, multiple)
    assert 2 * rounded(overlap, multiple) <= rounded(tile, multiple)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        ("256", 64, "--tile must be a whole number of pixels, got '256'"),
        (256.0, 64, "--tile must be a whole number of pixels, got 256.0"),
        (256, True, "--overlap must be a whole number of pixels, got True"),
        (256, None, "--overlap must be a whole number of pixels, got None"),
        (7, 0, "--tile must be at least 8 for this network, got 7"),
        (-256, 0, "--tile must be at least 8 for this network, got -256"),
        (256, -1, "--overlap must be at least 0, got -1"),
        (256, 129, "--overlap must be at most 128 for --tile 256, got 129"),
        (249, 125, "--overlap must be at most 124 for --tile 252, got 125"),
        (12, 5, "--overlap must be at most 4 for --tile 12, got 5"),
        (256, 10**30, "--overlap must be at most 128 for --tile 256, got an integer of 100 bits"),
    ],
)
def test_values_that_cannot_be_used_are_refused(tile: Any, overlap: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check(tile, overlap, 4)
    assert str(caught.value) == message
    with pytest.raises(UserError) as caught:
        blended((44, 28), tile, overlap, 4, constants(), Image())
    assert str(caught.value) == message


def test_a_tile_is_at_least_as_large_as_the_network_needs() -> None:
    check(24, 8, 4, least=21)
    with pytest.raises(UserError, match=r"^--tile must be at least 24 for this network, got 20$"):
        check(20, 8, 4, least=21)


def test_a_tile_off_the_grid_is_refused() -> None:
    """``blended`` does not round, because the caller reports the rounded side."""
    with pytest.raises(ValueError, match="multiples of 4, got 44 and 18"):
        blended((44, 28), 18, 8, 4, constants(), Image())
