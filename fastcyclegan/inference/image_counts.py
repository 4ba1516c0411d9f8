"""Count the launches and PyTorch calls with which a GPU translates an image, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastcyclegan.devtools.dry_run import Counts, dry_run
from fastcyclegan.engine.ahead import copy_on_cpu, isolated
from fastcyclegan.engine.choices import DTYPES
from fastcyclegan.engine.devices import autocast
from fastcyclegan.inference.network_runner import InferenceEngine

How = Literal["network", "uncaptured", "captured"]


def image_counts(
    net: nn.Module, height: int, width: int, precision: str = "bf16", how: How = "captured"
) -> Counts:
    """Return the launches and PyTorch calls for one image, once images of that size have come before.

    ``how`` is "network" for a plain call of ``net``, "uncaptured" for an ``InferenceEngine`` without graphs,
    or "captured" for one whose call is a graph, which counts as one launch. ``net`` itself is not called, but
    a copy with weights of zero. Its results are not computed (see ``devtools.dry_run``).
    """
    copied = copy_on_cpu(net).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.zeros(1, next(copied.parameters()).shape[1], height, width)
    image = image.contiguous(memory_format=torch.channels_last)
    with isolated(), torch.no_grad():
        if how == "network":
            with dry_run() as run, autocast("cpu", DTYPES[precision]):
                copied(image)
            return run.counts
        graphs = _Graphs(how == "captured")
        engine = InferenceEngine(copied, precision, log=lambda text: None, capture=graphs)
        with dry_run():
            for _ in range(2):  # the second call is captured, or finds out that it cannot be
                engine(image)
        graphs.replays = 0
        with dry_run() as run:
            engine(image)
        run.counts.launches.update(graph=graphs.replays)
    return run.counts


class _Graphs:
    """Counts replays in place of a GPU, or refuses to capture."""

    def __init__(self, possible: bool) -> None:
        self.possible, self.replays = possible, 0

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        if not self.possible:
            raise RuntimeError("not captured, to count the calls")
        return self._replay, step()

    def _replay(self) -> None:
        self.replays += 1
