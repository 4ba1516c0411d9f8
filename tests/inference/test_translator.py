"""Tests of translating images: padding, agreement with the network itself, result types, invalid images."""

from __future__ import annotations

import copy
import gc
import math
import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastcyclegan import CycleGAN
from fastcyclegan.checkpoints.loading import load_generator
from fastcyclegan.errors import UserError
from fastcyclegan.inference.translator import Translator, engine_of, pad_to_multiple, release_engine
from fastcyclegan.testing import assert_parity
from tests.models import TINY

CPU = torch.device("cpu")


def test_padding_reflects_to_the_multiple_and_the_minimum_size() -> None:
    pixels = torch.arange(5 * 7, dtype=torch.uint8).reshape(5, 7, 1)
    padded = pad_to_multiple(pixels, 4)
    assert padded.shape == (8, 8, 1)
    assert torch.equal(padded[:5, :7], pixels)
    assert padded[5:, 0, 0].tolist() == pixels[[3, 2, 1], 0, 0].tolist()
    assert padded[0, 7, 0] == pixels[0, 5, 0]
    assert pad_to_multiple(torch.zeros((1, 1, 3), dtype=torch.uint8), 4).shape == (8, 8, 3)
    assert pad_to_multiple(pixels, 256).shape == (256, 256, 1)


def test_multiples_of_four_are_not_padded(weights: Path) -> None:
    net = load_generator(weights)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = net(torch.from_numpy(pixels)[None].permute(0, 3, 1, 2).float() / 127.5 - 1)
    expected = ((expected + 1) * 127.5).round().clamp(0, 255)[0].permute(1, 2, 0).numpy()
    (result,) = Translator(net, CPU, "fp32")([torch.from_numpy(pixels)])
    assert (
        np.abs(result.astype(float) - expected).max() <= 1
    )  # a value at .5 may round either way in another layout


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


def test_only_the_visible_part_of_a_translation_must_be_numbers() -> None:
    """The first of two images of one padded size is smaller; what is not finite lies beside it."""

    class Poisoned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.clone()
            y[:, :, 7, 7] = math.nan
            return y

    pixels = [torch.zeros(7, 8, 3, dtype=torch.uint8), torch.zeros(8, 8, 3, dtype=torch.uint8)]
    small, whole = Translator(Poisoned(), CPU, "fp32")(pixels)
    assert small is not None
    assert not small.any()
    assert whole is None


@pytest.mark.parametrize("batch_size", [0, 1.5, math.nan, True, "2"])
def test_invalid_batch_sizes_are_named(batch_size: Any) -> None:
    with pytest.raises(ValueError, match=r"^batch_size must be an integer of at least 1, got "):
        CycleGAN(**TINY).translate(np.zeros((8, 8, 3), np.uint8), batch_size=batch_size)


def _array() -> Any:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def _fused_adam(net: torch.nn.Module) -> None:
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.Adam(net.parameters(), lr=0.1, fused=True).step()


def _data(net: torch.nn.Module) -> None:
    for p in net.parameters():
        p.data.mul_(1.5)


def _load(net: torch.nn.Module) -> None:
    net.load_state_dict({name: 1.5 * value for name, value in net.state_dict().items()})


@pytest.mark.parametrize("change", [_fused_adam, _data, _load])
def test_a_kept_engine_uses_the_weights_of_the_moment(change: Any) -> None:
    model = CycleGAN(**TINY, precision="fp32")
    before = model.translate(_array())
    engine = engine_of(model.G_AB, "fp32")
    change(model.G_AB)
    after = model.translate(_array())
    assert engine_of(model.G_AB, "fp32") is engine
    assert not np.array_equal(after, before)
    (fresh,) = Translator(copy.deepcopy(model.G_AB), CPU, "fp32")([torch.from_numpy(_array())])
    assert np.array_equal(after, fresh)


def test_images_are_right_during_and_after_training(tmp_path: Path) -> None:
    """Training frees what was kept, and its callbacks can translate."""
    model, found = CycleGAN(**TINY, precision="fp32"), []

    def translate(model: CycleGAN, record: Any) -> None:
        (fresh,) = Translator(copy.deepcopy(model.G_AB), CPU, "fp32")([torch.from_numpy(_array())])
        assert fresh is not None
        found.append(np.array_equal(model.translate(_array()), fresh))

    first = model.translate(_array())
    engine = engine_of(model.G_AB, "fp32")
    batches = [(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)) for _ in range(2)]
    model.fit(batches, print_freq=1, n_epochs=1, n_epochs_decay=0, callbacks=[translate])
    translate(model, None)
    assert found == [True] * len(found)
    assert len(found) >= 2
    assert engine_of(model.G_AB, "fp32") is not engine
    assert not np.array_equal(model.translate(_array()), first)


def test_a_kept_engine_does_not_keep_its_network() -> None:
    model = CycleGAN(**TINY, precision="fp32")
    model.translate(_array())
    net, engine = weakref.ref(model.G_AB), weakref.ref(engine_of(model.G_AB, "fp32"))
    assert engine_of(model.G_AB, "bf16") is not engine()
    model.translate(_array())
    engine = weakref.ref(engine_of(model.G_AB, "fp32"))
    del model
    gc.collect()
    assert (net(), engine()) == (None, None)


def test_released_engines_are_made_anew() -> None:
    net = CycleGAN(**TINY).G_AB
    engine = engine_of(net, "fp32")
    release_engine(net)
    release_engine(net)
    assert engine_of(net, "fp32") is not engine


def test_a_translator_has_another_one_in_another_precision() -> None:
    translator = Translator(CycleGAN(**TINY).G_AB, CPU, "fp32")
    other = translator.in_precision("bf16")
    assert translator.in_precision("fp32") is translator
    assert (other.engine.precision, other.net) == ("bf16", translator.net)
