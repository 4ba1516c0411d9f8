"""A CPU stand-in for CUDA graphs, so that machines without a GPU can test what a graph would capture."""

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
    """Return an identifier of ``t``'s memory that is valid while that memory exists.

    The address is unsuitable, because it can change when the memory is resized.
    """
    return t.untyped_storage()._cdata


def _plain(x: Any) -> Any:
    """Return a new tensor on the same memory as ``x``, which autograd does not track.

    In a tensor descriptor, the base is replaced in this way. Other values are returned unchanged.
    """
    if isinstance(x, TensorDescriptor):
        return dataclasses.replace(x, base=_plain(x.base))
    if not isinstance(x, Tensor):
        return x
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        x.untyped_storage(), x.storage_offset(), x.size(), x.stride()
    )


def _bytes(t: Tensor) -> Tensor:
    """Return the whole memory of ``t``, at its current size, as a tensor of bytes."""
    return torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


class RecordedGraph(TorchDispatchMode):
    """The CPU equivalent of a CUDA graph, which records the operators and kernel launches of one call.

    The class implements ``Capture``. Recording leaves no trace, because all memory that it changed is
    restored afterwards, and so is the state of torch's random generator. Each replay repeats the same
    operations on the same memory. So a host value that was used in an iteration keeps its recorded value,
    which lets a test detect it.

    As in a CUDA graph, a replay depends only on the contents of memory. It uses plain tensors that were
    created when each operator was recorded. The recorded tensors themselves cannot be used, for two reasons.
    Autograd can raise an error for a view whose base a replay has written; it does so in PyTorch's own
    threads too, so whether the error occurs depends on the processor. And an in-place transposition would be
    applied again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Callable[[], None]] = []
        self._made: dict[int, Tensor] = {}  # keyed by memory, which this keeps from being reused
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self.replays = 0

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        graph, random_state = RecordedGraph(), torch.get_rng_state()
        with _launch.observe(graph), graph:
            losses = step()
        for memory, before in graph._before.values():
            memory.copy_(before)
        torch.set_rng_state(random_state)

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for call in graph._calls:
                    call()

        return replay, losses

    def _save_contents(self, t: Tensor) -> None:
        """Save the contents of ``t`` if its memory is older than the recording.

        Inputs are saved as well, because not every schema declares what its operator changes.
        """
        if _memory(t) not in self._made and _memory(t) not in self._before:
            self._before[_memory(t)] = (_bytes(t), _bytes(t).clone())

    def launched(self, launch: _launch.Launch) -> None:
        with _disable_current_modes():
            plain = tuple(_plain(x) for x in launch.args)
            for x in plain:
                tensor = x.base if isinstance(x, TensorDescriptor) else x
                for t in _tensors(tensor):
                    self._save_contents(t)
        self._calls.append(
            lambda: _launch.launch(launch.kernel, launch.grid, plain, launch.constants, launch.config)
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if kwargs is None:
            kwargs = {}
        if _launch.inside():
            return func(*args, **kwargs)
        if func._schema.name in BODIES:
            with self:  # the mode is off inside its own handler
                return BODIES[func._schema.name](*args, **kwargs)
        plain_args, plain_kwargs = tree_map(_plain, (args, kwargs))
        inputs = _tensors((args, kwargs))
        for t in inputs:
            self._save_contents(t)
        result = func(*args, **kwargs)
        old = {_memory(t) for t in inputs}
        targets = [_plain(t) for t in _tensors(result)]
        for t in targets:
            if _memory(t) not in old:
                self._made[_memory(t)] = t

        def repeat() -> None:
            values = _tensors(func(*plain_args, **plain_kwargs))
            for target, value in zip(targets, values, strict=True):
                if _memory(value) != _memory(target):
                    # Copy all bytes: the elements of a result can share memory, and so can several results.
                    # The target can have grown since.
                    _bytes(target)[: value.untyped_storage().nbytes()].copy_(_bytes(value))

        self._calls.append(repeat)
        return result
