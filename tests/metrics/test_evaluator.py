"""The evaluator: all metrics of one pass over images, their order, what is kept, and what is read again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fastcyclegan.errors import UserError
from fastcyclegan.metrics.evaluator import SHOWN, Evaluator, Fake, Result
from fastcyclegan.metrics.features import Features, load_features
from fastcyclegan.metrics.frechet import frechet_distance
from fastcyclegan.metrics.images import ImageFiles
from fastcyclegan.metrics.kernel_distance import kernel_distance, subset_size
from fastcyclegan.metrics.lpips import BACKBONES
from fastcyclegan.metrics.pairs import pair_metrics
from fastcyclegan.settings.metrics import MetricConfig
from tests.conftest import scene
from tests.metrics.script_networks import Calling, saved, small_network
from tests.nn.plain_features import random_weights

pytest.importorskip("torchmetrics")
CPU = torch.device("cpu")
COUNT = 24
Pixels = NDArray[np.uint8]


@pytest.fixture
def reals(tmp_path: Path) -> ImageFiles:
    """Images with features of photographs."""
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{n:02d}.png" for n in range(COUNT)]
    for file in files:
        scene(rng, (32, 24)).save(file)
    return ImageFiles(files)


@pytest.fixture
def config(tmp_path: Path) -> MetricConfig:
    return MetricConfig(features=str(small_network(tmp_path)), kid_subsets=40, kid_subset_size=8)


def fakes(reals: ImageFiles, kind: str = "", strength: float = 0) -> Iterator[Fake]:
    """Yield altered copies of ``reals``."""
    rng = np.random.default_rng(1)
    for n, path in enumerate(reals.paths):
        image = Image.fromarray(reals.read(n))
        if kind == "blurred":
            image = image.filter(ImageFilter.GaussianBlur(strength))
        pixels = np.asarray(image)
        if kind == "noisy":
            pixels = (pixels + rng.normal(0, strength, pixels.shape)).clip(0, 255).astype(np.uint8)
        if kind == "shuffled" and rng.random() < strength:  # this share of the images
            pixels = pixels[:, :, [1, 2, 0]]
        yield Fake(path.name, pixels, n)


# --- The numbers --------------------------------------------------------------------------------------------


def test_the_metrics_are_those_of_their_modules(reals: ImageFiles, config: MetricConfig) -> None:
    """One pass gives the same as each by itself, in the order of the table."""
    evaluator = Evaluator(config, ["ssim", "kid", "l1", "fid", "psnr"], CPU)
    result = evaluator.evaluate(fakes(reals, "noisy", 30), reals)
    features = load_features(config, CPU)
    images = [fake.pixels for fake in fakes(reals, "noisy", 30)]
    fake, real = features.of(images), features.of(map(reals.read, range(COUNT)))
    pairs = [pair_metrics(image, reals.read(n), ("l1", "psnr", "ssim")) for n, image in enumerate(images)]
    assert list(result.metrics) == ["fid", "kid", "l1", "psnr", "ssim"]
    assert result.metrics == {
        "fid": frechet_distance(fake, real),
        "kid": kernel_distance(fake, real, 40, 8),
        **{name: float(np.mean([pair[name] for pair in pairs])) for name in ("l1", "psnr", "ssim")},
    }
    assert result.images == {"fake": COUNT, "real": COUNT, "pairs": COUNT}


@pytest.mark.parametrize(
    ("kind", "strengths"), [("blurred", (1, 2, 4)), ("noisy", (20, 50, 110)), ("shuffled", (0.25, 0.6, 1))]
)
def test_stronger_changes_are_farther(
    reals: ImageFiles, config: MetricConfig, kind: str, strengths: tuple[float, ...]
) -> None:
    evaluator = Evaluator(config, ["fid", "kid"], CPU)
    found = [evaluator.evaluate(fakes(reals, kind, strength), reals).metrics for strength in strengths]
    equal = evaluator.evaluate(fakes(reals), reals).metrics
    for values in (
        [each["fid"] for each in (equal, *found)],
        [each["kid"]["mean"] for each in (equal, *found)],
    ):
        assert values == sorted(values)
        assert len(set(values)) == len(values)


def test_equal_images(reals: ImageFiles, config: MetricConfig) -> None:
    evaluator = Evaluator(config, ["fid", "kid", "l1", "ssim"], CPU)
    metrics = evaluator.evaluate(fakes(reals), reals).metrics
    trace = evaluator.real_features(reals).double().var(0).sum().item()
    assert 0 <= metrics["fid"] < 1e-6 * trace
    assert abs(metrics["kid"]["mean"]) < 4 * metrics["kid"]["std"]
    assert (metrics["l1"], metrics["ssim"]) == (0, 1)


def test_the_order_of_images_changes_nothing_but_rounding(reals: ImageFiles, config: MetricConfig) -> None:
    evaluator = Evaluator(config, ["fid", "l1"], CPU)
    there = evaluator.evaluate(fakes(reals, "noisy", 30), reals)
    back = evaluator.evaluate(reversed(list(fakes(reals, "noisy", 30))), reals)
    assert there.metrics == pytest.approx(back.metrics, rel=1e-4)
    assert there.protocol == back.protocol
    assert [pair.name for pair in there.best] == [pair.name for pair in back.best]


def test_gray_images_are_pairs_of_colour_images(reals: ImageFiles, config: MetricConfig) -> None:
    gray = [Fake("a", reals.read(n)[:, :, :1], n) for n in range(3)]
    colour = [Fake("a", np.repeat(fake.pixels, 3, axis=2), fake.partner) for fake in gray]
    evaluator = Evaluator(config, ["fid", "l1"], CPU)
    assert evaluator.evaluate(gray, reals).metrics == evaluator.evaluate(colour, reals).metrics


def test_lpips_is_the_mean_of_pairs(reals: ImageFiles, tmp_path: Path) -> None:
    torch.save(random_weights(BACKBONES["alex"].build()), tmp_path / "alex.pth")
    config = MetricConfig(lpips_weights=tmp_path / "alex.pth")
    large = ImageFiles(reals.paths[:2], reals.fit)
    big = [np.asarray(Image.fromarray(large.read(n)).resize((40, 40))) for n in range(2)]
    for path, pixels in zip(large.paths, big, strict=True):
        Image.fromarray(pixels).save(path)
    evaluator = Evaluator(config, ["lpips"], CPU)
    altered = [Fake("a", big[0], 0), Fake("b", 255 - big[1], 1)]
    result = evaluator.evaluate(altered, large)
    equal, other = (pair.metrics["lpips"] for pair in result.best)
    assert equal == 0 < other
    assert result.metrics["lpips"] == other / 2
    assert result.judged_by == "lpips"
    assert result.protocol["lpips"]["network"] == "alex"
    assert "features" not in result.protocol


# --- Pairs that are shown -----------------------------------------------------------------------------------


def noisy_by_number(reals: ImageFiles, order: list[int]) -> Iterator[Fake]:
    """Yield copies that are the noisier, the later they are in ``order``."""
    for n in range(len(order)):
        pixels = (reals.read(n).astype(int) + order.index(n)).clip(0, 255).astype(np.uint8)
        yield Fake("same name", pixels, n, source=reals.read(0)[:, :, :1])


@pytest.mark.parametrize("metric", ["l1", "psnr", "ssim"])
def test_the_best_and_the_worst_pairs_are_shown(reals: ImageFiles, config: MetricConfig, metric: str) -> None:
    """Even if all have the same name."""
    order = np.random.default_rng(0).permutation(12).tolist()
    result = Evaluator(config, [metric], CPU).evaluate(noisy_by_number(reals, order), reals)
    assert result.judged_by == metric
    assert (len(result.best), len(result.worst)) == (SHOWN, SHOWN)
    values = [pair.metrics[metric] for pair in result.best]
    sign = 1 if metric == "l1" else -1
    assert values == sorted(values, key=lambda value: sign * value)
    if metric != "ssim":
        best = [
            np.array_equal(pair.images["real"], reals.read(n))
            for pair, n in zip(result.best, order[:4], strict=True)
        ]
        worst = [
            np.array_equal(pair.images["real"], reals.read(n))
            for pair, n in zip(result.worst, order[:-5:-1], strict=True)
        ]
        assert all(best + worst)
    assert list(result.best[0].images) == ["source", "translation", "real"]
    assert result.best[0].images["source"].shape == (24, 32, 3)


@pytest.mark.parametrize(("count", "best", "worst"), [(1, 1, 0), (4, 4, 0), (6, 4, 2), (8, 4, 4)])
def test_few_pairs_are_shown_once(
    reals: ImageFiles, config: MetricConfig, count: int, best: int, worst: int
) -> None:
    for equal in (False, True):
        order = [0] * count if equal else list(range(count))
        given = [Fake(str(n), reals.read(n) ^ (0 if equal else n), n) for n in range(len(order))]
        result = Evaluator(config, ["l1"], CPU).evaluate(given, reals)
        names = [pair.name for pair in (*result.best, *result.worst)]
        assert (len(result.best), len(set(names))) == (best, len(names))
        assert names[:best] == [str(n) for n in range(best)]
        assert len(result.worst) == (0 if equal else worst)  # of equal pairs, the first are both


def test_images_are_not_kept(reals: ImageFiles, config: MetricConfig) -> None:
    alive: list[weakref.ref[Pixels]] = []
    most = 0

    def made() -> Iterator[Fake]:
        nonlocal most
        for _ in range(4):
            for fake in fakes(reals, "noisy", 30):
                alive.append(weakref.ref(fake.pixels))
                most = max(most, sum(ref() is not None for ref in alive))
                yield fake

    Evaluator(config, ["fid", "l1"], CPU).evaluate(made(), reals)
    assert len(alive) == 4 * COUNT
    assert most <= 2 * SHOWN + 4  # those to show, and a few on their way


# --- What is loaded, computed and read once -----------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images of which features were computed."""
    numbers: list[int] = []
    before = Features.of

    def of(self: Features, images: Any) -> Any:
        found = before(self, images)
        numbers.append(len(found))
        return found

    monkeypatch.setattr(Features, "of", of)
    return numbers


def test_features_of_real_images_are_computed_once(
    reals: ImageFiles, config: MetricConfig, computed: list[int]
) -> None:
    """Also by another evaluator, from the cache on disk."""
    evaluator = Evaluator(config, ["fid"], CPU)
    first = evaluator.evaluate(list(fakes(reals))[:5], reals)
    evaluator.evaluate(list(fakes(reals))[:6], reals)
    again = Evaluator(config, ["fid"], CPU).evaluate(list(fakes(reals))[:5], ImageFiles(reals.paths))
    assert computed == [COUNT, 5, 6, 5]
    assert again.metrics == first.metrics


def test_other_images_or_networks_are_computed_anew(
    reals: ImageFiles, config: MetricConfig, computed: list[int], tmp_path: Path
) -> None:
    def run(reals: ImageFiles, **settings: Any) -> Any:
        computed.clear()
        given = MetricConfig(**{"features": config.features, **settings})
        return Evaluator(given, ["fid"], CPU).evaluate(list(fakes(reals))[:5], reals).metrics["fid"]

    first = run(reals)
    values = [first]
    for settings in (
        {"features": str(small_network(tmp_path, 1))},
        {"features_size": 20},
        {"features_size": 20, "resize": "legacy"},
    ):
        values.append(run(reals, **settings))
        assert computed == [COUNT, 5]
    Image.fromarray(255 - reals.read(7)).save(reals.paths[7])
    values.append(run(ImageFiles(reals.paths)))
    assert computed == [COUNT, 5]
    assert len(set(values)) == 5


def test_only_networks_that_are_needed_are_loaded(reals: ImageFiles) -> None:
    evaluator = Evaluator(MetricConfig(features="missing.pt"), ["l1"], CPU)
    evaluator.load()
    assert evaluator.evaluate(fakes(reals), reals).metrics == {"l1": 0}
    with pytest.raises(UserError, match=r"missing.pt: no such file"):
        Evaluator(MetricConfig(features="missing.pt"), ["kid"], CPU).load()


def test_metrics_can_be_changed(reals: ImageFiles, config: MetricConfig) -> None:
    evaluator = Evaluator(config, ["fid"], CPU)
    evaluator.use(["psnr", "l1"])
    assert list(evaluator.evaluate(fakes(reals), reals).metrics) == ["l1", "psnr"]


# --- Intervals and the protocol -----------------------------------------------------------------------------


def test_every_metric_has_an_interval_around_it(reals: ImageFiles, config: MetricConfig) -> None:
    evaluator = Evaluator(config, ["fid", "kid", "l1", "psnr"], CPU)
    result, again = (evaluator.evaluate(fakes(reals, "noisy", 60), reals, resample=50) for _ in range(2))
    assert list(result.intervals) == ["fid", "kid", "l1", "psnr"]
    for name, (low, high) in result.intervals.items():
        value = result.metrics[name]
        assert low < (value["mean"] if name == "kid" else value) < high
    assert result.as_dict() == again.as_dict()
    assert evaluator.evaluate(fakes(reals), reals).intervals == {}


def test_the_protocol_names_what_numbers_depend_on(reals: ImageFiles, config: MetricConfig) -> None:
    evaluator = Evaluator(config, ["fid", "kid", "ssim"], CPU)
    protocol = evaluator.evaluate(list(fakes(reals))[:10], reals).protocol
    assert evaluator.protocol({"fake": 10, "real": COUNT, "pairs": 10}, reals) == protocol
    digest = {"real_sha256": reals.digest, "real_jpeg": 0}
    assert protocol["images"] == {"fake": 10, "real": COUNT, "pairs": 10, **digest}
    assert protocol["features"]["network"] == "TorchScript"
    assert protocol["kid"] == {"subsets": 40, "subset_size": subset_size(8, (10, COUNT))}
    assert protocol["ssim"] == {"window": 11, "sigma": 1.5, "range": 255}
    assert protocol["precision"] == {"networks": "fp32", "distances": "fp64"}
    assert set(protocol) == {"images", "features", "kid", "ssim", "precision", "versions"}


def test_a_result_as_plain_values() -> None:
    result = Result({"a": 1}, {"fake": 2}, {"l1": 0.5})
    assert result.as_dict() == {
        "protocol": {"a": 1},
        "images": {"fake": 2},
        "metrics": {"l1": 0.5},
        "intervals": {},
    }


# --- Mistakes -----------------------------------------------------------------------------------------------


def test_a_pair_of_other_sizes_is_named(reals: ImageFiles, config: MetricConfig) -> None:
    given = [Fake("x/a.png", np.zeros((5, 8, 3), np.uint8), 0)]
    message = "^x/a.png: the images of a pair must have the same size, got 8x5 and 32x24 pixels$"
    with pytest.raises(UserError, match=message):
        Evaluator(config, ["l1"], CPU).evaluate(given, reals)


def test_other_numbers_of_features_of_the_two_sets(reals: ImageFiles, tmp_path: Path) -> None:
    file = saved(Calling(lambda x: x.flatten(1)), tmp_path / "flat.pt")
    given = [Fake(str(n), np.zeros((5, 5, 3), np.uint8)) for n in range(2)]
    message = (
        "^flat.pt: returns 75 features for the images to measure and 2304 for the real ones; give --feat"
    )
    with pytest.raises(UserError, match=message):
        Evaluator(MetricConfig(features=str(file)), ["fid"], CPU).evaluate(given, reals)


def test_a_file_that_disappears(reals: ImageFiles, config: MetricConfig) -> None:
    reals.paths[3].unlink()
    with pytest.raises(UserError, match=r"03.png: no such file"):
        Evaluator(config, ["fid"], CPU).evaluate([], reals)


def test_without_pairs_there_are_no_metrics_of_pairs(reals: ImageFiles, config: MetricConfig) -> None:
    given = [Fake("a", reals.read(0)), Fake("b", reals.read(1))]
    result = Evaluator(config, ["fid", "l1"], CPU).evaluate(given, reals, resample=3)
    assert (list(result.metrics), list(result.intervals)) == (["fid"], ["fid"])
    assert (result.images["pairs"], result.best, result.worst) == (0, [], [])
