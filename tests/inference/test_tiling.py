"""Tests of translating by tiles: the result of the whole image, what is printed, and what is refused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcyclegan.errors import UserError
from fastcyclegan.inference import tiling
from fastcyclegan.inference.tiling import TiledTranslator, TooLargeError, tiles_of
from fastcyclegan.inference.translator import Translator
from fastcyclegan.nn.as_trained import as_trained
from fastcyclegan.nn.networks import Generator, UnetGenerator
from fastcyclegan.settings.tiles import TileSettings
from fastcyclegan.tiles.execute import Execution
from fastcyclegan.tiles.graph import ForeignLayerError
from fastcyclegan.tiles.storage import FileRows, TensorRows
from tests.tiles.whole import randomised

CPU = torch.device("cpu")
# Both compute the same in fp32, in another order. The weights are those of a new network, whose maps are of
# the size of 1, and the result is within [-1, 1].
FP32 = 1e-4


def resnet(**options: Any) -> nn.Module:
    return Generator(**{"ngf": 4, "n_blocks": 2, **options}).eval()


def unet(**options: Any) -> nn.Module:
    return UnetGenerator(**{"ngf": 4, "num_downs": 5, **options}).eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": resnet,
    "gray": lambda: resnet(input_nc=1, output_nc=1),
    "colour to gray": lambda: resnet(output_nc=1),
    "unet": unet,  # a coarser grid
    "pix2pix": lambda: as_trained(unet(num_downs=6, norm="batch", use_dropout=True)),
}


def translator(make: Callable[[], nn.Module] = resnet, precision: str = "fp32") -> Translator:
    torch.manual_seed(0)
    return Translator(make(), CPU, precision, seed=3)


def image(height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (height, width, channels), dtype=torch.uint8, generator=generator)


def tiled(
    of_image: Translator, tile: Any = 32, lines: list[str] | None = None, **more: Any
) -> TiledTranslator:
    if more.get("tile_mode") == "independent":
        more = {"overlap": 8, **more}
    folder = more.pop("folder", Path())
    log = (lambda text: None) if lines is None else lines.append
    return TiledTranslator(of_image, TileSettings(tile, **more), folder, log)


def largest_difference(one: NDArray[np.uint8] | None, other: NDArray[np.uint8] | None) -> int:
    assert one is not None
    assert other is not None
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("size", [(70, 101), (66, 128)], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_tiles_give_the_translation_of_the_whole_image(network: str, size: tuple[int, int]) -> None:
    """At every pixel. The sides are not on the grid, so the image is padded by reflection at its end."""
    of_image = translator(NETWORKS[network])
    pixels = image(*size, of_image.channels)
    by_tiles = tiled(of_image)
    assert by_tiles.serves(*size)
    (whole,) = of_image([pixels], ["a.png"])
    assert largest_difference(by_tiles(pixels, "a.png", "a.png"), whole) <= 1
    floats = pixels.float() / 127.5 - 1
    (expected,) = of_image.tensors([floats], ["a.png"])
    result = by_tiles(floats, "a.png", "a.png")
    assert expected is not None
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= FP32


def test_float_images_keep_their_dtype() -> None:
    of_image = translator()
    floats = image(40, 50).double() / 127.5 - 1
    (expected,) = of_image.tensors([floats], ["0"])
    result = tiled(of_image)(floats, "0", "0")
    assert result.dtype == torch.float64
    assert torch.equal(result, result.float().double())  # it is computed in fp32
    assert (result - expected).abs().max() <= FP32
    result.requires_grad_().sum().backward()  # not an inference tensor


def test_the_name_determines_the_masks() -> None:
    of_image = translator(NETWORKS["pix2pix"])
    by_tiles, pixels = tiled(of_image), image(64, 100)
    one = by_tiles(pixels, "a.png", "a.png")
    assert np.array_equal(by_tiles(pixels, "a.png", "in/a.png"), one)
    assert not np.array_equal(by_tiles(pixels, "b.png", "a.png"), one)


def test_bf16_is_as_near_as_rounding() -> None:
    """Each result differs from fp32 by rounding; tiles may differ by as much more."""
    pixels = image(48, 80)
    (exact,), (whole,) = translator()([pixels]), translator(precision="bf16")([pixels])
    by_tiles = tiled(translator(precision="bf16"))(pixels, "0", "0")
    assert whole is not None
    assert exact is not None
    error = np.abs(whole.astype(int) - exact).mean()
    assert np.abs(by_tiles.astype(int) - exact).mean() <= 2 * error


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_the_line_before_the_tiles_tells_the_sizes(
    storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    events: list[str] = []
    kind = FileRows if storage == "disk" else TensorRows
    write = kind.write
    monkeypatch.setattr(kind, "write", lambda *given: (events.append(f"after {len(lines)}"), write(*given)))
    folder = tmp_path / "new"
    by_tiles = tiled(translator(), 32, lines, tile_storage=storage, folder=folder)
    by_tiles(image(64, 64), "a.png", "in/a.png")
    where = f"in a file in {folder}" if storage == "disk" else "in the memory of cpu"
    (line,) = lines
    assert line.startswith("in/a.png: ")
    assert " passes over tiles of 32x32, with up to " in line
    assert f" MiB {where} between them, " in line
    assert " MiB to compute a tile, and " in line
    assert line.endswith(" times the work of the whole image")
    assert set(events) == {"after 1"}
    assert not folder.exists() or not any(folder.iterdir())


@pytest.mark.parametrize("mode", ["exact", "independent"])
def test_progress_begins_with_0_and_ends_with_1(mode: Any) -> None:
    seen: list[tuple[str, float, str]] = []
    by_tiles = tiled(translator(), 64, tile_mode=mode)
    by_tiles.report = lambda *given: seen.append(given)
    by_tiles(image(100, 100), "a", "in/a")
    names, shares, texts = zip(*seen, strict=True)
    assert (shares[0], shares[-1]) == (0, pytest.approx(1))
    assert list(shares) == sorted(shares)
    assert set(names) == {"in/a"}
    assert texts[1].startswith("pass 1 of " if mode == "exact" else "independent tiles")


def test_images_without_numbers_have_no_translation() -> None:
    of_image = translator()
    with torch.no_grad():
        next(of_image.net.parameters()).fill_(float("nan"))
    for mode in ("exact", "independent"):
        by_tiles = tiled(of_image, 64, tile_mode=mode)
        assert by_tiles(image(70, 70), "a", "a") is None
        assert by_tiles(image(70, 70).float() / 127.5 - 1, "a", "a") is None


def test_only_the_visible_part_must_be_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not finite in the padding is cut off, as it is from whole images."""
    of_image = translator()

    def run(self: Execution, ends: Any) -> None:
        y = torch.zeros(1, 3, 72, 72)
        y[:, :, 70:, :] = float("nan")
        ends.write(((0, 72), (0, 72)), y)

    monkeypatch.setattr(Execution, "run", run)
    assert tiled(of_image)(image(69, 72), "a", "a") is not None
    assert tiled(of_image)(image(71, 72), "a", "a") is None


def test_independent_tiles_are_those_of_the_whole_image_where_the_network_sees_no_more() -> None:
    """Without norms, it sees some pixels around each. At a seam, the tiles fade into each other."""
    of_image = translator(lambda: randomised(resnet(norm="none", n_blocks=1)))
    pixels = image(150, 130)
    (whole,) = of_image([pixels])
    result = tiled(of_image, 96, tile_mode="independent", overlap=32)(pixels, "0", "0")
    assert whole is not None
    assert largest_difference(result[:32, :32], whole[:32, :32]) <= 1
    assert largest_difference(result[-32:, -32:], whole[-32:, -32:]) <= 1
    assert largest_difference(result, whole) > 1


def test_an_image_of_one_tile_is_not_served() -> None:
    by_tiles = tiled(translator(), 64)
    assert not by_tiles.serves(64, 64)
    assert by_tiles.serves(64, 68)
    assert not tiled(translator(), "auto").serves(10_000, 10_000)
    assert tiles_of(translator(), TileSettings(None), Path()) is None


# --- What is refused ----------------------------------------------------------------------------------------


def test_a_tile_that_is_not_on_the_grid_is_rounded_up() -> None:
    lines: list[str] = []
    assert tiled(translator(), 30, lines).sides == [32]
    assert lines == ["--tile 30: 32 is used, because the network needs a multiple of 4"]
    assert tiled(translator(unet), 33, lines).sides == [64]
    lines.clear()
    assert tiled(translator(), 32, lines).sides == [32]
    assert lines == []


def test_a_tile_smaller_than_its_halo_is_refused_at_once() -> None:
    of_image = translator(lambda: nn.Sequential(nn.ReflectionPad2d(5), nn.Conv2d(3, 3, 11)))
    with pytest.raises(
        UserError, match=r"^--tile 4 is smaller than the halo of 5 pixels .*; the least is 5$"
    ):
        tiled(of_image, 4)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (4, 0, "--tile must be at least 8 for this network, got 4"),
        (64, 40, "--overlap must be at most 32 for --tile 64, got 40"),
        ("auto", 300, "--overlap must be at most 256 for --tile 512, got 300"),
    ],
)
def test_independent_tiles_that_cannot_be_are_refused_at_once(tile: Any, overlap: int, message: str) -> None:
    with pytest.raises(UserError) as found:
        tiled(translator(), tile, tile_mode="independent", overlap=overlap)
    assert str(found.value) == message


def test_auto_leaves_out_tiles_that_are_too_small_for_the_overlap() -> None:
    assert tiled(translator(), "auto", tile_mode="independent", overlap=128).sides == [512, 256]
    assert tiled(translator(), "auto", tile_mode="independent", overlap=132).sides == [512]


def test_the_default_overlap_is_at_most_half_a_tile() -> None:
    """Other overlaps are refused if they are larger."""
    pixels, lines = image(40, 30), list[str]()
    tiled(translator(), 16, lines, tile_mode="independent")(pixels, "a.png", "in/a.png")
    assert lines == ["in/a.png: independent tiles of 16x16, which overlap by 8"]


def test_a_huge_tile_takes_no_time() -> None:
    started = time.process_time()
    assert not tiled(translator(), 2**31 - 1).serves(8192, 8192)
    assert time.process_time() - started < 1


def foreign() -> nn.Module:
    net = resnet()
    net.model.insert(4, nn.AdaptiveAvgPool2d(8))
    return net


def test_a_network_with_foreign_layers_is_refused_at_once() -> None:
    of_image = translator(foreign)
    with pytest.raises(ForeignLayerError) as found:
        tiled(of_image)
    assert "Generator.model.4 (AdaptiveAvgPool2d)" in str(found.value)
    assert "--tile_mode independent" in str(found.value)
    assert "\n" not in str(found.value)
    by_tiles = tiled(of_image, "auto")  # which may never need tiles
    with pytest.raises(ForeignLayerError, match="--tile_mode independent"):
        by_tiles(image(40, 40), "a", "a")


def test_too_little_memory_is_noticed_before_the_first_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "available_memory", lambda: 200_000)
    monkeypatch.setattr(Execution, "run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(TooLargeError) as found:
        tiled(translator())(image(100, 100), "a", "a")
    message = str(found.value)
    assert "MiB of memory (cpu) are needed, and 0.2 MiB are free: use --tile_storage disk, a" in message


def test_too_little_disk_is_noticed_before_the_first_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(Execution, "run", lambda *_: pytest.fail("it ran"))
    by_tiles = tiled(translator(), tile_storage="disk", folder=tmp_path)
    with pytest.raises(TooLargeError) as found:
        by_tiles(image(100, 100), "a", "a")
    assert f" MiB of disk ({tmp_path}) are needed, and 0.0 MiB are free: use a smaller" in str(found.value)


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    by_tiles = tiled(translator(), tile_storage="disk", folder=tmp_path / "file")
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'file'}"):
        by_tiles(image(100, 100), "a", "a")


def test_auto_tries_smaller_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after an error in the middle, with the same result."""
    monkeypatch.setattr(tiling, "SIDES", (64, 32))
    of_image, pixels, lines = translator(), image(100, 90), list[str]()
    (whole,) = of_image([pixels])
    run, passes = Execution.run, list[int]()

    def limited(self: Execution, ends: Any) -> None:
        passes.append(len(passes))
        if len(passes) == 1:
            raise RuntimeError("CUDA error: out of memory")
        run(self, ends)

    monkeypatch.setattr(Execution, "run", limited)
    assert largest_difference(tiled(of_image, "auto", lines)(pixels, "0", "x"), whole) <= 1
    assert [line for line in lines if "tried" in line] == [
        "x: the memory of cpu ran out, so smaller tiles of 32x32 are tried"
    ]

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Execution, "run", fail)
    with pytest.raises(TooLargeError, match=r"^the memory of cpu ran out: use --tile_storage disk"):
        tiled(of_image, "auto")(pixels, "0", "x")


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(Execution, "run", fail)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        tiled(translator())(image(40, 40), "a", "a")


def test_an_independent_tile_that_is_too_large_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcyclegan.inference.memory.available_memory", lambda: 100_000)
    by_tiles = tiled(translator(), 64, tile_mode="independent")
    with pytest.raises(TooLargeError, match=r"^a tile of 64x64 is too large: it needs about .*: use "):
        by_tiles(image(100, 100), "a", "a")


def test_compiled_networks_are_not_compiled_for_exact_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda net, **options: net)
    torch.manual_seed(0)
    of_image, lines = Translator(resnet(), CPU, "fp32", compiled=True), list[str]()
    by_tiles = tiled(of_image, 32, lines)
    for _ in range(2):
        by_tiles(image(40, 40), "a", "a")
    assert lines[0] == "--compile: exact tiles are not compiled"
    assert len(lines) == 3
