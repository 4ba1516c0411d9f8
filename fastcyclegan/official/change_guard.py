"""What a checkout's step depends on, compared before every iteration of ours; and the way back to its own
step where that changed.

Our step was made, and proved to be the checkout's, for the weights of the losses, the criterions, networks
and optimizers of that moment. A train.py may change any of them later. All that is read lies on the host: no
look at it waits for a GPU.
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
from fastcyclegan.official.step import NETS, NotServedError, Step, learning_rate
from fastcyclegan.recipes.image_pool import ImagePool

_OPTIONS = ("lambda_A", "lambda_B", "lambda_identity", "gan_mode", "pool_size")
_CRITERIONS = ("criterionGAN", "criterionCycle", "criterionIdt")
_OPTIMIZERS = {"optimizer_G": "G", "optimizer_D": "D"}
_POOLS = {"fake_A_pool": "A", "fake_B_pool": "B"}
_SCALARS = (bool, int, float, str)


class ChangeGuard:
    """Notes what the step of ``model`` is made of. ``changed`` returns what differs from then."""

    def __init__(self, model: Any) -> None:
        # The objects that ``seen`` knows by their ids: no other can take the place of one in memory.
        self.kept: list[Any] = []
        self.seen = _snapshot(model, self.kept)
        self.stepped(model)

    def stepped(self, model: Any) -> None:
        """Note that an iteration of ours was made: the optimizers have moments now."""
        self.moments = _moments(model)

    def changed(self, model: Any) -> str:
        """Return "" where our step is still that of ``model``, else what changed, in the middle of a
        sentence.
        """
        try:
            learning_rate(model)
            if _moments(model) != self.moments:
                return "an optimizer has lost its moments"
            now = _snapshot(model, [])
        except NotServedError as error:
            return str(error)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            return f"the model is not what it was ({error})"
        for name, then in self.seen.items():
            if now.get(name) != then:
                if isinstance(then, _SCALARS) and isinstance(now.get(name), _SCALARS):
                    return f"{name} is {now[name]}, was {then}"
                return f"{name} changed"
        return ""


def _snapshot(model: Any, kept: list[Any]) -> dict[str, Any]:
    """Return what the step of ``model`` is made of, by name: numbers and texts, and ids of objects, which are
    added to ``kept``. Nothing that lies on a GPU is read.
    """
    seen = {f"opt.{name}": getattr(model.opt, name, None) for name in _OPTIONS}

    def note(name: str, *objects: Any) -> None:
        kept.extend(objects)
        seen[name] = [value if isinstance(value, _SCALARS) else id(value) for value in objects]

    for name in (*NETS, *_CRITERIONS, *_OPTIMIZERS, *_POOLS):
        note(name, getattr(model, name))
    for path, method in methods_of(model).items():
        note(path, method)
    for name in _POOLS:
        pool = getattr(model, name)
        note(f"{name}.pool_size", pool.pool_size, getattr(pool, "num_imgs", None))
        note(f"random for {name}", getattr(sys.modules.get(type(pool).__module__), "random", None))
    _note_networks(model, note)
    for name in _CRITERIONS:
        for module in getattr(model, name).modules():
            for key, value in {**vars(module), **module._buffers}.items():
                # Such as gan_mode, and real_label.
                if isinstance(value, _SCALARS):
                    seen[f"{name}.{key}"] = value
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
    return seen


def _note_networks(model: Any, note: Callable[..., None]) -> None:
    for name in NETS:
        modules = list(getattr(model, name).modules())
        parameters = [p for module in modules for p in module._parameters.values()]
        note(f"layers of {name}", *modules)
        note(f"parameters of {name}", *parameters)
        trained = [getattr(p, "requires_grad", False) for p in parameters]
        note(f"requires_grad of the parameters of {name}", *trained)
        note(f"mode (training or evaluation) of {name}", *(module.training for module in modules))
        note(f"hooks of {name}", *map(has_hooks, modules))


def _moments(model: Any) -> list[int]:
    return [len(getattr(model, name).state) for name in _OPTIMIZERS]


def hand_over(model: Any, step: Step) -> str:
    """Give ``model`` what its own step needs to go on where ours stopped; return how exact that is, in the
    middle of a sentence.
    """
    engine = step.engine
    for name, phase in _OPTIMIZERS.items():
        _give_moments(getattr(model, name, None), engine.optimizers[phase])
    anew = []
    for name, side in _POOLS.items():
        if not _give_images(getattr(model, name, None), step.recipe.pools[side], model.real_A):
            anew.append(name)
    what = "it goes on with our weights and moments"
    if anew:
        what += f", but {' and '.join(anew)} cannot take our images"
    else:
        what += " and pools"
    if engine.choices.precision == "bf16":
        what += ", in fp32 instead of bf16"
    if engine.choices.compiled:
        what += ", no longer compiled"
    return what


def _give_moments(optimizer: Any, ours: torch.optim.Adam) -> None:
    """Make Adam's state, which the two share, one of ``optimizer`` alone, with steps where its own Adam
    counts them.
    """
    if optimizer is None or optimizer.state is not ours.state:
        return
    groups = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            groups[p] = group
    state: dict[Any, dict[str, Any]] = defaultdict(dict)
    for p, values in ours.state.items():
        own = dict(values)
        for key, value in own.items():
            if isinstance(value, Tensor):
                # A copy: ours may lie in the memory of a captured iteration.
                own[key] = value.clone()
        settings = groups.get(p, {})
        on_device = any(settings.get(key) for key in ("capturable", "fused"))
        if "step" in own and not on_device:
            own["step"] = torch.as_tensor(own["step"]).cpu()
        state[p] = own
    optimizer.state = state


def _give_images(theirs: Any, ours: ImagePool, like: Tensor) -> bool:
    """Put the images of our pool, [1, C, H, W] each, into the checkout's; return whether it takes them."""
    if not ours.filled:
        return True
    if not isinstance(getattr(theirs, "__dict__", {}).get("images"), list) or "num_imgs" not in vars(theirs):
        return False
    theirs.images = []
    if ours.slots is not None:
        for slot in ours.slots[: ours.filled]:
            image = slot[None].to(like.dtype)
            theirs.images.append(image.clone(memory_format=torch.contiguous_format))
    theirs.num_imgs = len(theirs.images)
    return True
