"""Notice that a network is no longer the one that was prepared for fast calls, and use it in eval mode."""

from __future__ import annotations

import contextlib
import operator
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
        modules, self._tensors, self._choices = _parts_of(net)
        self._modules = modules[1:]
        self._memory = list(map(_memory_of, self._tensors))
        self.can_capture = not _has_any_global_hook() and all(map(_is_plain, modules))

    def is_current(self, net: nn.Module) -> bool:
        """Return whether the modules, hooks and memory of ``net`` are those of this state.

        This runs before every call, so it is written to be fast.
        """
        modules, tensors, choices = _parts_of(net)
        if len(modules) - 1 != len(self._modules) or len(tensors) != len(self._tensors):
            return False
        if choices != self._choices or not all(map(operator.is_, modules[1:], self._modules)):
            return False
        return (
            all(map(operator.is_, tensors, self._tensors)) and list(map(_memory_of, tensors)) == self._memory
        )


def _parts_of(net: nn.Module) -> tuple[list[nn.Module], list[Tensor], list[Any]]:
    """Return the modules and tensors of ``net``, and what else determines the operators that it calls.

    Shared modules and tensors are listed as often as they occur.
    """
    modules, tensors = [net], list[Tensor]()
    choices: list[Any] = [_has_any_global_hook()]
    for number, module in enumerate(modules):  # which grows
        values = module.__dict__
        for members in (values["_parameters"], values["_buffers"]):
            if members:
                tensors += [t for t in members.values() if t is not None]
        if values["_modules"]:
            children = values["_modules"]
            choices.append(tuple(children))
            modules += [child for child in children.values() if child is not None]
        if "impl" in values:
            choices.append(values["impl"])
        if "forward" in values or _has_hooks(values):
            choices.append((number, *(len(values[name]) for name in _HOOKS)))
    return modules, tensors, choices


def _has_hooks(values: dict[str, Any]) -> bool:
    return bool(
        values["_forward_hooks"]
        or values["_forward_pre_hooks"]
        or values["_backward_hooks"]
        or values["_backward_pre_hooks"]
    )


def _memory_of(t: Tensor) -> tuple[Any, ...]:
    return t.data_ptr(), t.dtype, t.stride(), t.shape


def _is_plain(module: nn.Module) -> bool:
    """Return whether the forward of ``module`` is known to depend on tensors alone.

    A captured call repeats what Python decided in it, which the forward of a layer of someone else, or a
    hook, may decide differently the next time.
    """
    values = vars(module)
    if "forward" in values or _has_hooks(values):
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
