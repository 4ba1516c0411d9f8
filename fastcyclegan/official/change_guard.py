"""What a checkout's step depends on, compared before every iteration of ours; and the way back to its own
step where that changed.

Our step was made, and proved to be the checkout's, for the weights of the losses, the criterions, networks
and optimizers of that moment. A train.py may change any of them later. All that is read lies on the host: no
look at it waits for a GPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.official.source_check import methods_of
from fastcyclegan.official.step import NETS, NotServedError, Step, learning_rate
from fastcyclegan.recipes.image_pool import ImagePool

_OPTIONS = ("lambda_A", "lambda_B", "lambda_identity", "gan_mode", "pool_size")
_CRITERIONS = ("criterionGAN", "criterionCycle", "criterionIdt")
_OPTIMIZERS = {"optimizer_G": "G", "optimizer_D": "D"}
_POOLS = {"fake_A_pool": "A", "fake_B_pool": "B"}
_SCALARS = (bool, int, float, str)
Parts = Iterator[tuple[str, Any]]


class ChangeGuard:
    """Notes what the step of ``model`` is made of. ``changed`` returns what differs from then."""

    def __init__(self, model: Any) -> None:
        # The objects themselves, so that no other can take the place of one in memory.
        self.seen = dict(_parts(model))
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
            left = dict(self.seen)
            # One at a time: an object that was replaced is named before it is looked into.
            for name, now in _parts(model):
                then = left.pop(name, None)
                if _is_same(then, now):
                    continue
                if isinstance(then, _SCALARS) and isinstance(now, _SCALARS):
                    return f"{name} is {now}, was {then}"
                return f"{name} changed"
            if left:
                return f"{next(iter(left))} is gone"
        except NotServedError as error:
            return str(error)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            return f"the model is not what it was ({error})"
        return ""


def _parts(model: Any) -> Parts:
    """Yield what the step of ``model`` is made of, by name: objects that must stay the same ones, and values
    that must stay equal.
    """
    for name in _OPTIONS:
        yield f"opt.{name}", getattr(model.opt, name, None)
    for name in (*NETS, *_CRITERIONS):
        yield from _parts_of_module(name, getattr(model, name))
    for name in _POOLS:
        yield name, getattr(model, name)
        yield f"{name}.pool_size", getattr(model, name).pool_size
    yield from methods_of(model).items()
    for name in _OPTIMIZERS:
        yield name, getattr(model, name)
        yield from _parts_of_optimizer(name, getattr(model, name))


def _parts_of_module(name: str, whole: nn.Module) -> Parts:
    if not isinstance(whole, nn.Module):
        yield name, whole
        return
    for path, module in whole.named_modules(prefix=name):
        yield path, module
        forward_hooks = (*module._forward_hooks, *module._forward_pre_hooks)
        yield f"hooks of {path}", (*forward_hooks, *module._backward_hooks, *module._backward_pre_hooks)
        for key, p in module._parameters.items():
            yield f"{path}.{key}", p
            yield f"{path}.{key}.requires_grad", p is not None and p.requires_grad
        if name not in _CRITERIONS:
            yield f"{path}.training", module.training
            continue
        # Such as gan_mode and real_label.
        for key, value in {**vars(module), **module._buffers}.items():
            if isinstance(value, _SCALARS):
                yield f"{path}.{key}", value
            elif isinstance(value, Tensor):
                yield f"{path}.{key}", (value, value._version)


def _parts_of_optimizer(name: str, optimizer: torch.optim.Optimizer) -> Parts:
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    yield f"hooks of {name}", (*hooks[0], *hooks[1])
    yield f"{name}.state", optimizer.state
    yield f"{name}.step", vars(optimizer).get("step")
    for group in optimizer.param_groups:
        yield f"{name}.params", tuple(group["params"])
        for key, value in group.items():
            if key not in ("params", "lr", "initial_lr"):
                yield f"{name}.{key}", value


def _moments(model: Any) -> list[int]:
    return [len(getattr(model, name).state) for name in _OPTIMIZERS]


def _is_same(then: Any, now: Any) -> bool:
    """Whether ``now`` is ``then`` or equal to it. Tensors are not compared, which would wait for a GPU."""
    if isinstance(then, tuple) and isinstance(now, tuple):
        return len(then) == len(now) and all(map(_is_same, then, now))
    return then is now or (isinstance(then, _SCALARS) and isinstance(now, _SCALARS) and then == now)


def hand_over(model: Any, step: Step) -> str:
    """Give ``model`` what its own step needs to go on where ours stopped; return how exact that is, in the
    middle of a sentence.
    """
    engine = step.engine
    for name, phase in _OPTIMIZERS.items():
        _give_moments(getattr(model, name, None), engine.optimizers[phase])
    anew = []
    for name, side in _POOLS.items():
        if not _give_pictures(getattr(model, name, None), step.recipe.pools[side], model.real_A):
            anew.append(name)
    what = "it goes on with our weights and moments"
    if anew:
        what += f", but {' and '.join(anew)} cannot take our pictures"
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


def _give_pictures(theirs: Any, ours: ImagePool, like: Tensor) -> bool:
    """Put the pictures of our pool, [1, C, H, W] each, into the checkout's; return whether it takes them."""
    if not ours.filled:
        return True
    if not isinstance(getattr(theirs, "__dict__", {}).get("images"), list) or "num_imgs" not in vars(theirs):
        return False
    theirs.images = []
    if ours.slots is not None:
        for slot in ours.slots[: ours.filled]:
            picture = slot[None].to(like.dtype)
            theirs.images.append(picture.clone(memory_format=torch.contiguous_format))
    theirs.num_imgs = len(theirs.images)
    return True
