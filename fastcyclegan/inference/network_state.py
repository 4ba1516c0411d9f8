"""Notice that a network is no longer the one that was prepared for fast calls, and use it in eval mode."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NetworkState:
    """The modules and the memory of the weights of ``net``, as they were when this object was created.

    ``is_current`` compares them with the network's present ones. The values of the weights are not part of
    the state: whoever uses it must read them on every call. The network itself is not kept alive.
    """

    def __init__(self, net: nn.Module) -> None:
        modules = list(net.modules())
        # The network itself is represented by None, which keeps it from being kept alive.
        self._modules = [None if module is net else module for module in modules]
        self._parts = [_parts_of(module) for module in modules]
        self._memory = [list(map(_memory_of, tensors)) for tensors, _, _ in self._parts]
        self._global_hooks = _has_any_global_hook()
        self.can_capture = not self._global_hooks and all(map(_is_plain, modules))

    def is_current(self, net: nn.Module) -> bool:
        """Return whether the modules, hooks and memory of ``net`` are those of this state."""
        if _has_any_global_hook() != self._global_hooks:
            return False
        for module, (tensors, children, choices), memory in zip(
            self._modules, self._parts, self._memory, strict=True
        ):
            now = _parts_of(net if module is None else module)
            # The elements are compared by identity.
            if len(now[0]) != len(tensors) or not all(map(_is, now[0], tensors)):
                return False
            if now[1:] != (children, choices) or list(map(_memory_of, tensors)) != memory:
                return False
        return True


def _is(one: object, other: object) -> bool:
    return one is other


def _parts_of(module: nn.Module) -> tuple[list[Tensor], list[nn.Module | None], tuple[Any, ...]]:
    """Return the tensors and children of ``module``, and what else determines the operators that it calls."""
    values = vars(module)
    tensors = [t for t in (*values["_parameters"].values(), *values["_buffers"].values()) if t is not None]
    choices = (values.get("impl"), "forward" in values, *(len(values[name]) for name in _HOOKS))
    return tensors, list(values["_modules"].values()), choices


def _memory_of(t: Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), t.dtype, t.device, t.stride(), t.shape


def _is_plain(module: nn.Module) -> bool:
    """Return whether the forward of ``module`` is known to depend on tensors alone.

    A captured call repeats what Python decided in it, which the forward of a layer of someone else, or a
    hook, may decide differently the next time.
    """
    values = vars(module)
    if "forward" in values or any(values[name] for name in _HOOKS):
        return False
    # Not the class's own module: a subclass may inherit its forward, as parametrized layers do.
    return type(module).forward.__module__.startswith(("torch.nn.", "fastcyclegan."))


_changing_mode = threading.Lock()
_in_eval_mode: weakref.WeakKeyDictionary[nn.Module, _EvalMode] = weakref.WeakKeyDictionary()


class _EvalMode:
    """How many calls use a network in eval mode, and which of its modules were in training mode before."""

    def __init__(self, net: nn.Module) -> None:
        self.calls = 0
        self.training = [weakref.ref(module) for module in net.modules() if module.training]
        self._set(False)

    def _set(self, training: bool) -> None:
        for reference in self.training:
            module = reference()
            if module is not None:
                module.training = training

    def end(self) -> None:
        self._set(True)


@contextlib.contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Run the body with ``net`` in eval mode, and restore the mode of each of its modules afterwards.

    Several threads can be in such a body with the same network; the last one restores the modes.
    """
    with _changing_mode:
        mode = _in_eval_mode.get(net)
        if mode is None:
            mode = _in_eval_mode[net] = _EvalMode(net)
        mode.calls += 1
    try:
        yield
    finally:
        with _changing_mode:
            mode.calls -= 1
            if mode.calls == 0:
                del _in_eval_mode[net]
                mode.end()
