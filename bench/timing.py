"""How operators are timed: with a device that has finished, inputs that come round past the L2 cache, and no launch from Python."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

BYTES_PAST_L2 = 256 << 20


def synchronised() -> float:
    """The timer: it waits for the device before it reads the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rotations(bytes_each: int, device: str) -> int:
    """Return how many inputs of so many bytes it takes to be past the L2 cache when the first one's turn comes again."""
    return max(2, -(-BYTES_PAST_L2 // bytes_each)) if device == "cuda" else 2


def one_round(make: Callable[[], list[Callable[[], Any]]], device: str) -> Callable[[], Any]:
    """Return a function that runs every step that ``make`` returns once: on a GPU a CUDA graph."""
    if device != "cuda":
        todo = make()
        return lambda: [step() for step in todo]
    # A backward runs on the stream of its forward, so that must be the one that is captured.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        todo = make()
        for _ in range(2):
            [step() for step in todo]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        [step() for step in todo]
    return graph.replay
