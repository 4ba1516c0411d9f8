"""TensorBoard reads the events, and an error of a write is raised where the event is added."""

from __future__ import annotations

import io
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastcyclegan.errors import UserError
from fastcyclegan.training.events import EventFile
from tests.training.limits import no_file_longer_than


def loaded(folder: Path) -> Any:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def scene(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([127 + 90 * np.sin(x / (35 + 9 * c) + y / (47 - 4 * c)) for c in range(3)], -1)
    return Image.fromarray((pixels + np.random.default_rng(0).normal(0, 4, pixels.shape)).astype(np.uint8))


def test_scalars_are_readable_before_the_file_is_closed(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "e")
    for n in (1, 2):
        file.add_scalars(n, {"loss/G": 0.5 * n, "lr": 1e-4})
    events = loaded(tmp_path / "e")
    assert [(e.step, e.value) for e in events.Scalars("loss/G")] == [(1, 0.5), (2, 1.0)]
    assert events.Scalars("lr")[1].value == pytest.approx(1e-4)
    assert events.Scalars("lr")[1].wall_time > 1e9
    file.close()


def test_images_are_small_and_become_rarer(tmp_path: Path) -> None:
    """A grid of 24 images of 256 pixels, drawn at each of 2,000 iterations."""
    grid, tiny = scene(1564, 1062), Image.new("RGB", (20, 10), (0, 0, 7))
    file = EventFile(tmp_path)
    for n in range(1, 2001):
        file.add_image(n, "samples", tiny)
    file.add_image(3000, "samples", grid)
    file.close()
    images = loaded(tmp_path).Images("samples")
    steps = [image.step for image in images]
    assert steps[:20] == list(range(1, 21))
    assert all(b >= 1.05 * a for a, b in itertools.pairwise(steps))
    assert len(steps) == 107
    assert (images[0].width, images[0].height) == (20, 10)
    with Image.open(io.BytesIO(images[0].encoded_image_string)) as image:  # smaller as PNG, and exact
        assert (image.format, image.getpixel((3, 3))) == ("PNG", (0, 0, 7))
    assert (images[-1].width, images[-1].height) == (512, 348)
    assert len(images[-1].encoded_image_string) < 60_000
    with Image.open(io.BytesIO(images[-1].encoded_image_string)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (512, 348))
        shown = np.asarray(image, np.float64)
    expected = np.asarray(grid.resize((512, 348), Image.Resampling.LANCZOS), np.float64)
    assert np.abs(shown - expected).mean() < 3


@pytest.mark.parametrize("later", [2e9 + 60, 2e9, 1e9], ids=["a minute later", "at once", "clock set back"])
def test_a_resumed_run_replaces_the_later_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: float
) -> None:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    for _ in range(9):
        EventFile(tmp_path).close()
    first = EventFile(tmp_path)
    for n in range(1, 6):
        first.add_scalars(n, {"lr": float(n)})
    # It is never closed, as in a process that was killed.
    monkeypatch.setattr(time, "time", lambda: later)
    second = EventFile(tmp_path, purge_step=4)
    second.add_scalars(4, {"lr": 40.0})
    second.close()
    assert [(e.step, e.value) for e in loaded(tmp_path).Scalars("lr")] == [(1, 1), (2, 2), (3, 3), (4, 40)]
    first.close()


def test_a_failed_write_raises_in_the_callers_thread(tmp_path: Path) -> None:
    threads = threading.active_count()
    file = EventFile(tmp_path)
    file.add_scalars(1, {"lr": 1.0})
    size = file.path.stat().st_size
    for _ in range(2):
        with no_file_longer_than(size + 10), pytest.raises(UserError) as raised:
            file.add_scalars(2, {"lr": 2.0})
        assert str(raised.value).startswith(f"cannot write {file.path}: File too large (disk /")
        assert file.path.stat().st_size == size
    file.add_scalars(3, {"lr": 3.0})
    file.close()
    assert [e.step for e in loaded(tmp_path).Scalars("lr")] == [1, 3]
    assert threading.active_count() == threads


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write .*/e: File exists$"):
        EventFile(tmp_path / "e")
