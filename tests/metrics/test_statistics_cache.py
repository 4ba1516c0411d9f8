"""The cache of features of real images: when it is used, and that no fault of it changes a result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcyclegan.metrics.statistics_cache import cache_file, cached_features
from tests.training.limits import no_file_longer_than

PROTOCOL = {"network": "small.pt", "sha256": "12", "side": None, "resize": "none"}


class Computing:
    """Computes features, and counts how often."""

    def __init__(self) -> None:
        self.features = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
        self.calls = 0
        self.lines: list[str] = []

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.features

    def cached(self, file: Path, count: int = 40) -> Tensor:
        return cached_features(file, count, self, self.lines.append)


@pytest.fixture
def computing() -> Computing:
    return Computing()


def test_features_are_computed_once(tmp_path: Path, computing: Computing) -> None:
    file = tmp_path / "new" / "folder" / "a.npy"
    first, second = computing.cached(file), computing.cached(file)
    assert torch.equal(first, second)
    assert torch.equal(second, computing.features)
    assert (computing.calls, computing.lines) == (1, [])
    assert [path.name for path in file.parent.iterdir()] == ["a.npy"]
    assert np.array_equal(np.load(file), computing.features.numpy())


def test_a_file_for_each_set_and_network() -> None:
    files = {cache_file("a", PROTOCOL), cache_file("b", PROTOCOL)}
    for name, value in {"network": "b", "sha256": "3", "side": 64, "resize": "clean"}.items():
        files.add(cache_file("a", PROTOCOL | {name: value}))
    assert len(files) == 6
    assert cache_file("a", dict(reversed(PROTOCOL.items()))) in files
    (folder,) = {file.parent for file in files}
    assert (folder.name, folder.parent.name) == ("statistics", "fastcyclegan")


def damaged(kind: str, file: Path) -> None:
    data = file.read_bytes()
    wide = np.load(file)
    match kind:
        case "cut":
            file.write_bytes(data[:-5])
        case "cut header":
            file.write_bytes(data[:20])
        case "empty":
            file.write_bytes(b"")
        case "text":
            file.write_text("text")
        case "archive":
            np.savez(file.open("wb"), wide)
        case "huge shape":
            file.write_bytes(data.replace(b"(40, 30), }       ", b"(40000000000, 30),}"))
        case "objects":
            np.save(file, np.array([{}, 1], object), allow_pickle=True)
        case "float64":
            np.save(file, wide.astype(np.float64))
        case "fewer rows":
            np.save(file, wide[1:])
        case "one dimension":
            np.save(file, wide[:, 0])
        case "nan":
            np.save(file, np.full_like(wide, np.nan))


@pytest.mark.parametrize("kind", [
    *("cut", "cut header", "empty", "text", "archive", "huge shape", "objects", "float64", "fewer rows"),
    *("one dimension", "nan"),
])  # fmt: skip
def test_a_damaged_file_is_replaced(tmp_path: Path, computing: Computing, kind: str) -> None:
    file = tmp_path / "a.npy"
    computing.cached(file)
    damaged(kind, file)
    assert torch.equal(computing.cached(file), computing.features)
    assert computing.lines == [f"{file}: damaged, so the features of the real images are computed again"]
    assert torch.equal(computing.cached(file), computing.features)
    assert computing.calls == 2


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, computing: Computing) -> None:
    file = tmp_path / "a.npy"
    with no_file_longer_than(1000):
        found = computing.cached(file)
    assert torch.equal(found, computing.features)
    (line,) = computing.lines
    assert line.startswith(f"cannot write {file}: File too large")
    assert line.endswith("; the features of the real images are not kept for the next time")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_cache_that_cannot_be_written(tmp_path: Path, computing: Computing, place: str) -> None:
    file = tmp_path / "cache" / "a.npy"
    if place == "file":  # in place of the folder
        (tmp_path / "cache").touch()
    else:  # in place of the file
        file.mkdir(parents=True)
    assert torch.equal(computing.cached(file), computing.features)
    assert computing.lines[-1].endswith("; the features of the real images are not kept for the next time")
    assert len(computing.lines) == {"file": 1, "folder": 2}[place]
