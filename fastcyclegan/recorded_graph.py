"""A stand-in for CUDA graphs on machines without a GPU: for tests of what is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastcyclegan.kernels import _launch
from fastcyclegan.kernels._operator import BODIES


class RecordedGraph(TorchDispatchMode):
    """What a CUDA graph is, on the CPU: the operators and kernel launches of one call, on the very tensors that they were given.

    It is a ``Capture``: after it nothing has happened (what the recording changed is put back), and each replay runs the same on the same
    memory. So a number of the host's that got into an iteration stays what it was, and shows.
    """

    dry = all_configs = False
    capability = 90

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Callable[[], None]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept: list[Any] = []
        self.replays = 0

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        graph = RecordedGraph()
        with _launch.observe(graph), graph:
            losses = step()
        for memory, before in graph._before.values():
            memory.copy_(before)

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for call in graph._calls:
                    call()

        return replay, losses

    def _changes(self, t: Tensor) -> None:
        """Remember what lay in memory that is older than the recording."""
        storage = t.untyped_storage()
        if storage.data_ptr() not in self._made and storage.data_ptr() not in self._before:
            memory = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._before[storage.data_ptr()] = (memory, memory.clone())

    def launched(self, launch: _launch.Launch) -> None:
        for t in launch.args:
            if isinstance(t, Tensor):
                self._changes(t)
        self._kept.append(launch)
        self._calls.append(lambda: _launch.launch(launch.kernel, launch.grid, launch.args, launch.constants, launch.config))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _launch.inside():
            return func(*args, **kwargs)
        if func._schema.name in BODIES:
            with self:  # off inside its own handler
                return BODIES[func._schema.name](*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func._schema.is_mutable:
            for t in given:
                self._changes(t)
        result = func(*args, **kwargs)
        old = {t.untyped_storage().data_ptr() for t in given}
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in old]
        self._made |= {t.untyped_storage().data_ptr() for t in made}
        self._kept.append(result)  # its memory stays its own

        def again() -> None:
            found = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            new = [t for t in found if t.untyped_storage().data_ptr() not in old]
            for target, value in zip(made, new, strict=True):
                target.copy_(value)

        self._calls.append(again)
        return result
