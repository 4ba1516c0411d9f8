"""Draw images to train on, kill a run, and compare the states of runs bit for bit."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcyclegan.tensor_files import load_tensors


def draw(file: Path, width: int, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (24, width, 3), np.uint8)
    Image.fromarray(pixels).save(file)


def state_of(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = load_tensors(run / "state.pt")
    return state


def assert_same(one: Any, other: Any, place: str = "state") -> None:
    """Compare the parts of two states that later iterations depend on, bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            if key not in ("config", "extra"):  # names of folders, and times
                assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for n, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}.{n}")
    else:
        assert one == other, place


def killed(command: Sequence[str], state: Path) -> None:
    """Run ``command``, and kill it as soon as the file ``state`` exists."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
