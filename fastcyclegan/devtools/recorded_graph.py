"""A stand-in for CUDA graphs on machines without a GPU: for tests of what is captured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from triton.tools.tensor_descriptor import TensorDescriptor

from fastcyclegan.kernels import _launch
from fastcyclegan.kernels._operator import BODIES


def _memory(t: Tensor) -> int:
    """Return what stands for the memory of ``t`` as long as something holds it: its address may change when
    it is resized.
    """
    return t.untyped_storage()._cdata


def _plain(x: Any) -> Any:
    """Return ``x``, a tensor as another one on the same memory, which autograd knows nothing of."""
    if isinstance(x, TensorDescriptor):
        return dataclasses.replace(x, base=_plain(x.base))
    if not isinstance(x, Tensor):
        return x
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        x.untyped_storage(), x.storage_offset(), x.size(), x.stride()
    )


def _bytes(t: Tensor) -> Tensor:
    """Return the whole memory of ``t``, as large as it is now."""
    return torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())


def _tensors(found: Any) -> list[Tensor]:
    return [t for t in tree_leaves(found) if isinstance(t, Tensor)]


class RecordedGraph(TorchDispatchMode):
    """What a CUDA graph is, on the CPU: the operators and kernel launches of one call, on the very memory
    that they were given.

    It is a ``Capture``: after it nothing has happened (what the recording changed is put back), and each
    replay runs the same on the same memory. So a number of the host's that got into an iteration stays what
    it was, and shows.

    A replay knows memory and no history, as a graph does: it works on plain tensors, taken when each operator
    was recorded. The recorded tensors themselves are no good for it: autograd objects to a view whose base a
    replay has written (in PyTorch's own threads too, so whether it does depends on the processor), and an
    in-place transposition would happen again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Callable[[], None]] = []
        self._made: dict[int, Tensor] = {}  # by memory, which so stays its own
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
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

    def _is_given(self, t: Tensor) -> None:
        """Remember what lies in memory that is older than the recording: not every schema says what its
        operator changes.
        """
        if _memory(t) not in self._made and _memory(t) not in self._before:
            self._before[_memory(t)] = (_bytes(t), _bytes(t).clone())

    def launched(self, launch: _launch.Launch) -> None:
        with _disable_current_modes():
            plain = tuple(_plain(x) for x in launch.args)
            for x in plain:
                given = x.base if isinstance(x, TensorDescriptor) else x
                for t in _tensors(given):
                    self._is_given(t)
        self._calls.append(
            lambda: _launch.launch(launch.kernel, launch.grid, plain, launch.constants, launch.config)
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs is None:
            kwargs = {}
        if _launch.inside():
            return func(*args, **kwargs)
        if func._schema.name in BODIES:
            with self:  # off inside its own handler
                return BODIES[func._schema.name](*args, **kwargs)
        plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
        given = _tensors((args, kwargs))
        for t in given:
            self._is_given(t)
        result = func(*args, **kwargs)
        old = {_memory(t) for t in given}
        targets = [_plain(t) for t in _tensors(result)]
        for t in targets:
            if _memory(t) not in old:
                self._made[_memory(t)] = t

        def again() -> None:
            values = _tensors(func(*plain_args, **plain_kwargs))
            for target, value in zip(targets, values, strict=True):
                if _memory(value) != _memory(target):
                    # All bytes: the elements of a result may share memory, and so may results. The target may
                    # have grown since.
                    _bytes(target)[: value.untyped_storage().nbytes()].copy_(_bytes(value))

        self._calls.append(again)
        return result
