"""Features of images by TorchScript modules and by VGG16, and what is refused as a feature network."""

from __future__ import annotations

import hashlib
import math
import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcyclegan.errors import UserError
from fastcyclegan.metrics.features import BATCH, Features, load_features
from fastcyclegan.nn.feature_networks import PUBLISHED, vgg16
from fastcyclegan.settings.metrics import MetricConfig
from tests.metrics.script_networks import FEATURES, Calling, Small, saved, small_network
from tests.nn.plain_features import random_weights, vgg16_relu

CPU = torch.device("cpu")


def images(count: int, size: tuple[int, int] = (24, 24), seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


def loaded(file: Path, **settings: object) -> Features:
    return load_features(MetricConfig(features=str(file), **settings), CPU)


def test_features_are_those_of_the_module(tmp_path: Path) -> None:
    """On images of two sizes, in their order, within the rounding of sums of 75 products and 100 places."""
    network = loaded(small_network(tmp_path))
    given = [*images(3), *images(2, (30, 17)), *images(1)]
    found = network.of(given)
    assert (found.dtype, found.shape, found.requires_grad) == (torch.float32, (6, FEATURES), False)
    exact = Small().double()
    for row, image in zip(found, given, strict=True):
        expected = exact(torch.from_numpy(image).permute(2, 0, 1)[None].double())[0]
        bound = 175 * torch.finfo(torch.float32).eps * expected.abs().max()
        assert (row - expected).abs().max() <= bound


def test_batches_do_not_change_the_features(tmp_path: Path) -> None:
    """Up to the rounding of sums of 75 products and 100 places in another order."""
    network = loaded(small_network(tmp_path))
    given = images(2 * BATCH + 3)
    together, alone = network.of(given), torch.cat([network.of([image]) for image in given])
    scale = together.abs().max()
    assert (together - alone).abs().max() <= 100 * torch.finfo(torch.float32).eps * scale
    assert torch.equal(network.of(iter(given)), together)  # the same each time


def test_images_are_held_one_batch_at_a_time() -> None:
    alive: list[weakref.ref[NDArray[np.uint8]]] = []
    batches: list[weakref.ref[Tensor]] = []
    sizes: list[int] = []

    def made() -> Iterator[NDArray[np.uint8]]:
        for image in images(5 * BATCH):
            fresh = image.copy()
            alive.append(weakref.ref(fresh))
            assert sum(ref() is not None for ref in alive) <= 2  # the one before is still a variable
            yield fresh

    def run(batch: Tensor) -> Tensor:
        batches.append(weakref.ref(batch))
        sizes.append(len(batch))
        assert sum(ref() is not None for ref in batches) <= 2
        return batch.mean((2, 3))

    assert len(Features("net", "", run, None, "clean", CPU).of(made())) == 5 * BATCH
    assert sizes == [BATCH] * 5


def test_the_protocol_names_what_features_depend_on(tmp_path: Path) -> None:
    file = small_network(tmp_path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    expected = {"network": "TorchScript", "sha256": digest, "side": None, "resize": "none"}
    assert loaded(file).protocol == expected
    assert loaded(file, features_size="none", resize="legacy").protocol == expected
    resized = {"side": 32, "resize": "legacy"}
    assert loaded(file, features_size=32, resize="legacy").protocol == expected | resized


def test_images_are_resized_as_asked(tmp_path: Path) -> None:
    file = saved(Calling(lambda x: x.mean((2, 3)) + x.shape[3]), tmp_path / "sides.pt")  # traced: a constant
    clean, legacy = (
        loaded(file, features_size=9, resize=rule).of(images(3, (40, 30))) for rule in ("clean", "legacy")
    )
    assert not torch.allclose(clean, legacy)
    only_one = saved(Calling(lambda x: x.reshape(x.shape[0], 3 * 24 * 24)[:, :5]), tmp_path / "one.pt")
    assert loaded(only_one, features_size=24).of(images(3, (40, 30))).shape == (3, 5)


def fixed_count(x: Tensor) -> Tensor:
    return x.flatten(1)[:1, :4]


BAD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "three dimensions": (
        lambda x: x[:, 0],
        r"it must return features \[3, D\] for 3 images, got torch.float32 \[3, 24, 24\]",
    ),
    "one dimension": (lambda x: x[:, 0, 0, 0], r"got torch.float32 \[3\]"),
    "too few rows": (fixed_count, r"got torch.float32 \[1, 4\]"),
    "no columns": (lambda x: x.flatten(1)[:, :0], r"got torch.float32 \[3, 0\]"),
    "integers": (lambda x: x.flatten(1)[:, :4].long(), r"got torch.int64 \[3, 4\]"),
    "not a number": (lambda x: x.flatten(1)[:, :4] * math.nan, "its features are not finite"),
    "infinite": (lambda x: x.flatten(1)[:, :4] + math.inf, "its features are not finite"),
    "beyond float32": (lambda x: x.flatten(1)[:, :4].double() + 1e300, "its features are not finite"),
    "several": (lambda x: (x.flatten(1), x), "for 3 images, got tuple"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_row_of_numbers_for_each_image_is_refused(tmp_path: Path, kind: str) -> None:
    function, message = BAD[kind]
    network = loaded(saved(Calling(function), tmp_path / "bad.pt"))
    with pytest.raises(UserError, match=f"^bad.pt: .*{message}$"):
        network.of(images(3))


def test_double_precision_is_fine(tmp_path: Path) -> None:
    network = loaded(saved(Calling(lambda x: x.flatten(1)[:, :4].double()), tmp_path / "double.pt"))
    assert network.of(images(3)).dtype == torch.float32


@pytest.mark.parametrize(("size", "text"), [((24, 25), "3x3x24x25"), ((3, 3), "3x3x3x3")])
def test_a_module_that_fails_is_named_in_one_line(tmp_path: Path, size: tuple[int, int], text: str) -> None:
    """Here because it only works for images of 24x24."""
    file = saved(
        Calling(lambda x: x.reshape(-1, 3 * 24 * 24) @ torch.ones(3 * 24 * 24, 2)), tmp_path / "one.pt"
    )
    assert loaded(file).of(images(3)).shape == (3, 2)
    with pytest.raises(UserError, match=f"^one.pt: fails for images {text}: .+") as error:
        loaded(file).of(images(3, size))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_lack_of_memory_is_not_the_modules_fault() -> None:
    def run(batch: Tensor) -> Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")

    with pytest.raises(RuntimeError, match="allocate memory"):
        Features("net", "", run, None, "clean", CPU).of(images(1))


def test_other_numbers_of_features_for_other_images(tmp_path: Path) -> None:
    network = loaded(saved(Calling(lambda x: x.flatten(1)), tmp_path / "flat.pt"))
    message = "^flat.pt: returns 75 features for some images and 1728 for others; give --features_size$"
    with pytest.raises(UserError, match=message):
        network.of([*images(2), *images(1, (5, 5))])


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no images"):
        loaded(small_network(tmp_path)).of([])


def test_files_that_are_no_modules_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    (tmp_path / "text.pt").write_text("text\n" * 9)
    (tmp_path / "empty.pt").touch()
    whole = small_network(tmp_path).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    for name in ("weights", "text", "empty", "cut"):
        with pytest.raises(
            UserError, match=rf"{name}.pt: not a TorchScript module that torch can load .torch"
        ) as error:
            loaded(tmp_path / f"{name}.pt")
        assert "\n" not in str(error.value)
    for file, problem in ((tmp_path / "missing.pt", "no such file"), (tmp_path, "not a file")):
        with pytest.raises(
            UserError, match=f"^{file}: {problem}; features must be inception, vgg16 or a file$"
        ):
            loaded(file)


# --- Published networks -------------------------------------------------------------------------------------


class Layers(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3), keepdim=True)


class LikeInception(nn.Module):
    """Has the parts that the published module has."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1)[:, :2]


@pytest.fixture
def inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the published one."""
    file = saved(LikeInception(), tmp_path / "published.pt")
    published = replace(PUBLISHED["inception"], sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setitem(PUBLISHED, "inception", published)
    monkeypatch.setattr(
        "fastcyclegan.metrics.features.published_file", lambda name, *rest, hint: tmp_path / "published.pt"
    )
    return file


@pytest.mark.parametrize("by_name", [True, False])
def test_inception_is_given_normalised_images_of_299_pixels(inception: Path, by_name: bool) -> None:
    """The same if the file is passed. The module itself would resize by another rule."""
    network = load_features(MetricConfig(features="inception" if by_name else str(inception)), CPU)
    assert network.protocol["network"] == "inception"
    assert (network.protocol["side"], network.protocol["resize"]) == (299, "clean")
    pixels = np.full((20, 30, 3), (0, 128, 255), np.uint8)
    torch.testing.assert_close(network.of([pixels]), torch.tensor([[-1.0, 0.0, 127 / 128]]))


def test_the_features_of_vgg16_are_the_means_of_its_last_layer(tmp_path: Path) -> None:
    weights = random_weights(vgg16())
    torch.save(weights, tmp_path / "vgg.pth")
    config = MetricConfig(features="vgg16", feature_weights=tmp_path / "vgg.pth", features_size=32)
    network = load_features(config, CPU)
    (pixels,) = images(1, (32, 32))
    mean, deviation = (
        [[[value]] for value in values] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    image = (pixels.transpose(2, 0, 1) / 255 - mean) / deviation
    doubled = {key: value.double() for key, value in weights.items()}
    expected = vgg16_relu(torch.from_numpy(image)[None], doubled, 13).mean((2, 3))
    found = network.of([pixels])
    assert found.shape == (1, 512)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)
    assert network.protocol["network"] == "vgg16 relu5_3"
    assert re.fullmatch("[0-9a-f]{64}", network.protocol["sha256"])
