"""The built-in dataset: its images, and scores that reward neither unchanged nor wrong images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcyclegan.data import builtin
from fastcyclegan.data.scan import Images


def images(domain: str, split: str = "test", count: int = 16, seed: int = 0) -> np.ndarray:
    return np.stack([builtin.draw(domain, seed, split, n) for n in range(count)])


def test_only_test_images_share_their_scenes() -> None:
    a, b = images("A"), images("B")
    assert np.array_equal((a == builtin.GROUND).all(-1), (b == builtin.GROUND).all(-1))
    train_a, train_b = images("A", "train"), images("B", "train")
    same = [
        ((x == builtin.GROUND).all(-1) == (y == builtin.GROUND).all(-1)).all()
        for x in train_a
        for y in train_b
    ]
    assert not any(same)
    assert not np.array_equal(images("A", seed=1), a)
    colours = {tuple(c) for c in b.reshape(-1, 3)}
    assert colours == {builtin.GROUND, *builtin.STRIPES}


def test_scores_rate_perfect_useless_and_wrong_translations(tmp_path: Path) -> None:
    a, b = images("A"), images("B")
    assert builtin.gap_closed(a, b, b) == pytest.approx(1.0)
    assert builtin.gap_closed(a, a, b) == pytest.approx(0.0)
    assert builtin.gap_closed(b, a, a) == pytest.approx(1.0)
    assert builtin.distance_ratio(a, b, b) == 0.0
    assert builtin.distance_ratio(a, a, b) == 1.0
    # Correct stripes in the wrong colours satisfy the first score, but not the second.
    inverted = np.where((b == builtin.GROUND).all(-1, keepdims=True), b, 255 - b)
    assert builtin.gap_closed(a, inverted, b) > 0.8
    assert builtin.distance_ratio(a, inverted, b) > 0.9
    # Stripes that also cover the background overshoot.
    rows = (np.arange(builtin.SIZE) % builtin.PERIOD < builtin.PERIOD // 2)[None, :, None, None]
    everywhere = np.where(rows, np.uint8(0), np.uint8(255)) * np.ones_like(b)
    assert builtin.gap_closed(a, everywhere, b) < 0
    # Compute both scores from files: for a translator that changes nothing, and for a perfect one.
    builtin.write(tmp_path, 0)
    files = {name: sorted((tmp_path / name).iterdir()) for name in ("testA", "testB")}
    found = Images([], [], files["testA"], files["testB"], {})
    true = torch.from_numpy(images("B", count=32)).permute(0, 3, 1, 2) / 127.5 - 1
    cpu = torch.device("cpu")
    plain, striped = images("A", count=32), images("B", count=32)
    assert builtin.score(lambda images: images, plain, striped, cpu) == builtin.Score(0.0, 1.0)
    assert builtin.score(lambda images: true, plain, striped, cpu) == builtin.Score(1.0, 0.0)
    # The same for both directions: perfect from A to B, unchanged from B to A.
    both = builtin.scores(lambda name, images: true if name == "G_AB" else images, found, cpu)
    assert both == {"AB": builtin.Score(1.0, 0.0), "BA": builtin.Score(0.0, 1.0)}
    # The same for pairs, side by side in one file.
    builtin.write(tmp_path, 0, paired=True)
    pairs = {name: sorted((tmp_path / name).iterdir()) for name in ("train", "test")}
    found = Images(*([pairs["train"]] * 2), *([pairs["test"]] * 2), {}, "aligned", halves=True)
    both = builtin.scores(lambda name, images: true if name == "G_AB" else images, found, cpu)
    assert both == {"AB": builtin.Score(1.0, 0.0), "BA": builtin.Score(0.0, 1.0)}
    assert builtin.pair_score(lambda images: true, found, cpu) == builtin.PairScore(0.0, 0.0)
    unchanged = builtin.pair_score(lambda images: images, found, cpu)
    assert unchanged.of_untranslated == 1.0
    assert unchanged.of_mean > 0.5
    backwards = dataclasses.replace(found, direction="BtoA")
    true = torch.from_numpy(plain).permute(0, 3, 1, 2) / 127.5 - 1
    assert builtin.pair_score(lambda images: true, backwards, cpu) == builtin.PairScore(0.0, 0.0)


def test_writes_every_image_once(tmp_path: Path) -> None:
    builtin.write(tmp_path, 3)
    assert {path.name: len(list(path.iterdir())) for path in tmp_path.iterdir()} == {
        "trainA": 200,
        "trainB": 200,
        "testA": 32,
        "testB": 32,
    }
    file = tmp_path / "trainA" / "007.png"
    stamp = file.stat().st_mtime_ns
    builtin.write(tmp_path, 3)
    assert file.stat().st_mtime_ns == stamp
