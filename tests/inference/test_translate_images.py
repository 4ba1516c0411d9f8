"""Tests of translating images from Python: result types, invalid images, and images by tiles."""

from __future__ import annotations

import copy
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fastcyclegan import CycleGAN
from fastcyclegan.checkpoints.loading import load_generator
from fastcyclegan.errors import UserError
from fastcyclegan.inference.translator import Translator
from fastcyclegan.testing import assert_parity
from tests.models import TINY


def test_results_have_the_type_of_their_image(tmp_path: Path) -> None:
    model, rng = CycleGAN(**TINY), np.random.default_rng(0)
    array = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "x.png")
    images = [
        Image.fromarray(array),
        array,
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        Image.fromarray(array[:, :, 0]),
    ]
    results = model.translate(images)
    assert [type(result) for result in results] == [
        Image.Image,
        np.ndarray,
        Image.Image,
        Image.Image,
        Image.Image,
    ]
    assert results[1].shape == (9, 14, 3)
    single = model.translate(Image.fromarray(array))
    # A value at .5 may round either way at another position in a batch.
    assert all(
        np.abs(np.asarray(result).astype(float) - results[1]).max() <= 1 for result in (*results[:4], single)
    )
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1
    out = model.translate(tensor)
    assert out.shape == (3, 9, 14)
    rounded = ((out + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(rounded - results[1]).max() <= 1
    part = tensor[:, :8, :12]  # a size that needs no padding
    exact = copy.deepcopy(model.networks["G_AB"]).double()(part[None].double())[0]
    assert_parity(
        "the second of two",
        model.translate(part[None].repeat(2, 1, 1, 1))[1],
        model.translate(part),
        exact,
        torch.float32,
    )
    assert model.translate(tensor.double()).dtype == torch.float64
    (
        out * torch.ones(1, requires_grad=True)
    ).sum().backward()  # not an inference tensor, so it can be used further
    assert model.networks["G_AB"].training


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((4, 4, 3)), ValueError, r"an array must be uint8 \[H, W, 3\], got float64 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), ValueError, r"an array must be uint8 \[H, W, 3\], got uint8 \[4, 4\]"),
        (
            torch.zeros(1, 4, 4),
            ValueError,
            r"a tensor must be floats \[3, H, W\] .* got torch.float32 \[1, 4, 4\]",
        ),
        (
            torch.full((3, 4, 4), 128.0),
            ValueError,
            r"a tensor must be in \[-1, 1\], got values from 128 to 128",
        ),
        (
            torch.full((3, 4, 4), float("nan")),
            ValueError,
            r"a tensor must be in \[-1, 1\], got values from nan",
        ),
        (Image.new("RGB", (0, 5)), ValueError, "an image must not be empty, got 0x5 pixels"),
        (3, TypeError, "an image must be a PIL image, an array, a tensor or a path, got int"),
        ("none.png", UserError, "none.png: no such file"),
        (Image.new("F", (4, 4)), UserError, "the image: floating-point values"),
    ],
)
def test_invalid_images_are_rejected(image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CycleGAN(**TINY).translate(image)
    with pytest.raises(UserError, match="direction must be AtoB or BtoA, got 'A2B'"):
        CycleGAN(**TINY).translate(image, "A2B")


def test_an_image_that_the_network_gives_no_numbers_for_is_named(overflowing: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise, plain = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8), np.full((9, 14, 3), 7, np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    model = CycleGAN(**TINY)
    model.G_AB.load_state_dict(load_generator(overflowing).state_dict())
    assert model.translate(plain).shape == (9, 14, 3)
    for images, name in (
        (tmp_path / "x.png", f"{tmp_path / 'x.png'}"),
        (noise, "the image"),
        ([plain, noise], "image 2 of 2"),
        (Image.fromarray(noise), "the image"),
        (torch.rand(3, 8, 8), "image 1 of 1 of the tensor"),
        (torch.stack([torch.zeros(3, 8, 8), torch.rand(3, 8, 8)]), "image 2 of 2 of the tensor"),
    ):
        with pytest.raises(UserError, match=f"^the network gives no numbers for {re.escape(name)}: "):
            model.translate(images)


@pytest.mark.parametrize("batch_size", [0, 1.5, math.nan, True, "2"])
def test_invalid_batch_sizes_are_named(batch_size: Any) -> None:
    with pytest.raises(ValueError, match=r"^batch_size must be an integer of at least 1, got "):
        CycleGAN(**TINY).translate(np.zeros((8, 8, 3), np.uint8), batch_size=batch_size)


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("storage", ["memory", "disk"])
def test_tiles_give_the_translation_of_the_whole_image(
    storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every type. The file between passes is in the folder for temporary files, and disappears."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = CycleGAN(**TINY, precision="fp32")
    array = pixels(43, 70)
    floats = torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1
    images = [array, Image.fromarray(array), floats, torch.stack([floats, floats.flip(1)]), pixels(20, 20)]
    whole = model.translate(images, tile=None)
    tiles = model.translate(images, tile=32, tile_storage=storage)
    for one, other in zip(whole, tiles, strict=True):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert one.shape == other.shape
            assert (one - other).abs().max() <= 1e-4
        else:
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_images_that_do_not_fit_are_translated_by_tiles(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcyclegan.inference.tiling.SIDES", (32,))
    model = CycleGAN(**TINY, precision="fp32")
    image: Any = pixels(43, 70)
    if kind == "tensor":
        image = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    whole = model.translate(image)

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Translator, "__call__", fail)
    monkeypatch.setattr(Translator, "tensors", fail)
    difference = np.abs(np.asarray(model.translate(image), float) - np.asarray(whole, float)).max()
    assert difference <= (1 if kind == "array" else 1e-4)
    name = "the image" if kind == "array" else "image 1 of 1 of the tensor"
    with pytest.raises(UserError, match=rf"^{name}: 70x43 does not fit into the memory of cpu"):
        model.translate(image, tile=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 0}, "tile must be an integer of at least 1, auto or None, got 0"),
        ({"overlap": 3}, "--overlap has no effect without --tile_mode independent"),
        ({"tile": 4, "tile_mode": "independent"}, "--tile must be at least 8 for this network, got 4"),
    ],
)
def test_tiles_that_cannot_be_are_named(options: Any, message: str) -> None:
    with pytest.raises(UserError) as found:
        CycleGAN(**TINY).translate(pixels(8, 8), **options)
    assert str(found.value) == message


def test_a_network_of_ones_own_is_translated_by_independent_tiles() -> None:
    """Exact tiles name the layer that they do not know."""
    model = CycleGAN(**TINY, precision="fp32")
    model.networks["G_AB"].model.append(torch.nn.AdaptiveAvgPool2d((72, 72)))
    with pytest.raises(UserError, match=r"AdaptiveAvgPool2d.*--tile_mode independent"):
        model.translate(pixels(72, 72), tile=32)
    model.networks["G_AB"].model[-1] = torch.nn.Hardtanh(-0.5, 0.5)
    result = model.translate(pixels(72, 72), tile=32, tile_mode="independent", overlap=8)
    assert result.shape == (72, 72, 3)
