"""Detect changes to anything that our training step depends on, and switch back to the checkout's own step.

Our step was built for the loss weights, criterions, networks and optimizers that the model had before its
first iteration, and was verified against the checkout's step with them. A train.py can change any of them
later, so they are checked before every iteration. Only values on the host are read, so no check waits for a
GPU.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastcyclegan.nn.layer_checks import has_hooks
from fastcyclegan.official.source_check import methods_of
from fastcyclegan.official.step import NETS, NotReplaceableError, Step, learning_rate
from fastcyclegan.recipes.image_pool import ImagePool

_OPTIONS = ("lambda_A", "lambda_B", "lambda_identity", "gan_mode", "pool_size")
_CRITERIONS = ("criterionGAN", "criterionCycle", "criterionIdt")
_OPTIMIZERS = {"optimizer_G": "G", "optimizer_D": "D"}
_POOLS = {"fake_A_pool": "A", "fake_B_pool": "B"}
_SCALARS = (bool, int, float, str)


class ChangeGuard:
    """A snapshot of everything that the step of ``model`` depends on.

    ``find_change`` compares the model with it.
    """

    def __init__(self, model: Any) -> None:
        # The snapshot identifies objects by their ids. They are kept alive so that no id is reused.
        self.kept_alive: list[Any] = []
        self.snapshot = _snapshot(model, self.kept_alive)
        self.record_step(model)

    def record_step(self, model: Any) -> None:
        """Record how many parameters have optimizer moments. Call this after every iteration of our step."""
        self.moments = _moments(model)

    def find_change(self, model: Any) -> str:
        """Describe the first change to ``model`` since the snapshot, as part of a sentence.

        Returns "" if nothing has changed.
        """
        try:
            learning_rate(model)
            if _moments(model) != self.moments:
                return "an optimizer has lost its moments"
            now = _snapshot(model, [])
        except NotReplaceableError as error:
            return str(error)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            return f"the model no longer has something that fastcyclegan's step needs ({error})"
        for name, then in self.snapshot.items():
            if now.get(name) != then:
                if isinstance(then, _SCALARS) and isinstance(now.get(name), _SCALARS):
                    return f"{name} changed from {then} to {now[name]}"
                return f"{name} changed"
        return ""


def _snapshot(model: Any, kept_alive: list[Any]) -> dict[str, Any]:
    """Return everything that the step of ``model`` depends on, by name.

    Numbers and strings are stored by value. Other objects are stored by id and appended to ``kept_alive``.
    No memory on a GPU is read.
    """
    values = {f"opt.{name}": getattr(model.opt, name, None) for name in _OPTIONS}

    def note(name: str, *objects: Any) -> None:
        kept_alive.extend(objects)
        values[name] = [value if isinstance(value, _SCALARS) else id(value) for value in objects]

    for name in (*NETS, *_CRITERIONS, *_OPTIMIZERS, *_POOLS):
        note(name, getattr(model, name))
    for path, method in methods_of(model).items():
        note(path, method)
    for name in _POOLS:
        pool = getattr(model, name)
        note(f"{name}.pool_size", pool.pool_size, getattr(pool, "num_imgs", None))
        note(f"random module of {name}", getattr(sys.modules.get(type(pool).__module__), "random", None))
    _note_networks(model, note)
    for name in _CRITERIONS:
        for module in getattr(model, name).modules():
            for key, value in {**vars(module), **module._buffers}.items():
                # For example gan_mode and real_label.
                if isinstance(value, _SCALARS):
                    values[f"{name}.{key}"] = value
                elif isinstance(value, Tensor):
                    note(f"{name}.{key}", value, value._version)
            note(f"hooks of {name}", *module._forward_hooks, *module._forward_pre_hooks)
    for name in _OPTIMIZERS:
        optimizer = getattr(model, name)
        note(f"hooks of {name}", *optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks)
        note(f"{name}.state", optimizer.state)
        note(f"{name}.step", vars(optimizer).get("step"), type(optimizer).step)
        for group in optimizer.param_groups:
            note(f"{name}.params", *group["params"])
            for key in group.keys() - {"params", "lr", "initial_lr"}:
                value = group[key]
                note(f"{name}.{key}", *(value if isinstance(value, tuple) else [value]))
    return values


def _note_networks(model: Any, note: Callable[..., None]) -> None:
    for name in NETS:
        modules = list(getattr(model, name).modules())
        parameters = [p for module in modules for p in module._parameters.values()]
        note(f"layers of {name}", *modules)
        note(f"parameters of {name}", *parameters)
        trained = [getattr(p, "requires_grad", False) for p in parameters]
        note(f"requires_grad of the parameters of {name}", *trained)
        note(f"training or evaluation mode of {name}", *(module.training for module in modules))
        note(f"hooks of {name}", *map(has_hooks, modules))


def _moments(model: Any) -> list[int]:
    return [len(getattr(model, name).state) for name in _OPTIMIZERS]


def hand_back(model: Any, step: Step) -> str:
    """Give ``model`` the state that its own step needs to continue where ours stopped.

    Returns part of a sentence that lists the state with which the checkout's step continues, and how it will
    differ from our step.
    """
    engine = step.engine
    for name, phase in _OPTIMIZERS.items():
        _copy_moments(getattr(model, name, None), engine.optimizers[phase])
    refused = []
    for name, side in _POOLS.items():
        if not _copy_images(getattr(model, name, None), step.recipe.pools[side], model.real_A):
            refused.append(name)
    summary = "it continues with the current weights and optimizer moments"
    if refused:
        summary += f", but {' and '.join(refused)} cannot store the images of fastcyclegan's pools"
    else:
        summary += ", and with the images in the pools"
    if engine.choices.precision == "bf16":
        summary += ", now in fp32 instead of bf16"
    if engine.choices.compiled:
        summary += ", no longer compiled"
    return summary


def _copy_moments(optimizer: Any, ours: torch.optim.Adam) -> None:
    """Give ``optimizer`` its own copy of the Adam state that it shares with ``ours``.

    Step counts are moved to the host, unless the checkout's own Adam keeps them on the device.
    """
    if optimizer is None or optimizer.state is not ours.state:
        return
    groups = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            groups[p] = group
    state: dict[Any, dict[str, Any]] = defaultdict(dict)
    for p, values in ours.state.items():
        copied = dict(values)
        for key, value in copied.items():
            if isinstance(value, Tensor):
                # Cloned because ours may be in the memory of a captured iteration.
                copied[key] = value.clone()
        settings = groups.get(p, {})
        on_device = any(settings.get(key) for key in ("capturable", "fused"))
        if "step" in copied and not on_device:
            copied["step"] = torch.as_tensor(copied["step"]).cpu()
        state[p] = copied
    optimizer.state = state


def _copy_images(target: Any, ours: ImagePool, like: Tensor) -> bool:
    """Copy the images of our pool, [1, C, H, W] each, into ``target``, a pool of the checkout.

    The copies get the dtype of ``like``. Returns False, and copies nothing, if ``target`` does not store its
    images in the same way as the official pool.
    """
    if not ours.filled:
        return True
    if not isinstance(getattr(target, "__dict__", {}).get("images"), list) or "num_imgs" not in vars(target):
        return False
    target.images = []
    if ours.slots is not None:
        for slot in ours.slots[: ours.filled]:
            image = slot[None].to(like.dtype)
            target.images.append(image.clone(memory_format=torch.contiguous_format))
    target.num_imgs = len(target.images)
    return True
