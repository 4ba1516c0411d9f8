"""Tests of translators: padding, agreement with the network itself, and engines that are kept."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcyclegan import CycleGAN
from fastcyclegan.checkpoints.loading import load_generator
from fastcyclegan.inference.translator import Translator, engine_of, pad_to_multiple, release_engine
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
