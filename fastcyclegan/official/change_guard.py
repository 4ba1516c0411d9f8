"""What a checkout's step depends on, read again before every iteration of ours; and the way back to its own
step where that changed.

Our step was made, and proved to be the checkout's, for the weights of the losses, the criterions, networks
and optimizers of that moment. A train.py may change any of them later. All that is read lies on the host: no
look at it waits for a GPU.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcyclegan.official.source_check import KNOWN
from fastcyclegan.official.step import NETS, NotServedError, Step, learning_rate
from fastcyclegan.recipes.image_pool import ImagePool

_OPTIONS = ("lambda_A", "lambda_B", "lambda_identity", "gan_mode", "pool_size")
_CRITERIONS = ("criterionGAN", "criterionCycle", "criterionIdt")
_OPTIMIZERS = {"optimizer_G": "G", "optimizer_D": "D"}
_POOLS = {"fake_A_pool": "A", "fake_B_pool": "B"}


@dataclass(frozen=True, eq=False)
class _Same:
    """An object that is to stay the same one, and, for a tensor, unchanged. It is kept, so that its place in
    memory is not another's.
    """

    value: Any
    version: int = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value and self.version == other.version

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        if self.value is None:
            return "None"
        return f"a {type(self.value).__name__}"


def _same(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Same(value, value._version)
    return _Same(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_plain(part) for part in value)
    if isinstance(value, (int, float, str, bool, type(None))):
        return value
    return _same(value)


class ChangeGuard:
    """What ``model`` is made of where our step ``step`` takes its place. ``changed`` says what differs from
    then.
    """

    def __init__(self, model: Any, step: Step) -> None:
        self.step = step
        self.modules = {name: list(net.modules()) for name, net in self._nets(model).items()}
        self.seen, self.states = self._read(model), self._states(model)

    @staticmethod
    def _nets(model: Any) -> dict[str, nn.Module]:
        nets = {}
        for name in NETS:
            net = getattr(model, name, None)
            if isinstance(net, nn.Module):
                nets[name] = net
        return nets

    @staticmethod
    def _states(model: Any) -> list[int]:
        return [len(getattr(model, name).state) for name in _OPTIMIZERS]

    def stepped(self, model: Any) -> None:
        """Note that an iteration of ours was made: the optimizers have moments now."""
        self.states = self._states(model)

    def changed(self, model: Any) -> str:
        """Return "" where our step is still that of ``model``, else what changed, in the middle of a
        sentence.
        """
        try:
            learning_rate(model)
            now = self._read(model)
            if self._states(model) != self.states:
                return "an optimizer has lost its moments"
        except NotServedError as error:
            return str(error)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            return f"the model is not what it was ({error})"
        for name, then in self.seen.items():
            if now.get(name) != then:
                return _difference(name, then, now.get(name))
        return ""

    def _read(self, model: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name in _OPTIONS:
            seen[f"opt.{name}"] = _plain(getattr(model.opt, name, None))
        for name in _CRITERIONS:
            criterion = getattr(model, name, None)
            seen[name] = _same(criterion)
            seen[f"settings of {name}"] = _settings_of(name, criterion)
        for name in (*NETS, *_OPTIMIZERS, *_POOLS):
            seen[name] = _same(getattr(model, name, None))
        for name in _POOLS:
            pool = getattr(model, name, None)
            seen[f"size of {name}"] = getattr(pool, "pool_size", None)
        # A function bound to a class is the class's attribute itself: the same object as long as nobody puts
        # another there.
        for name in [path for path in KNOWN if "." not in path and path != "optimize_parameters"]:
            seen[f"method {name}"] = (_same(getattr(type(model), name, None)), name in vars(model))
        self._read_nets(model, seen)
        self._read_optimizers(model, seen)
        return seen

    def _read_nets(self, model: Any, seen: dict[str, Any]) -> None:
        for name, net in self._nets(model).items():
            modules = self.modules[name]
            parameters = list(net.parameters())
            seen[f"parameters of {name}"] = [id(p) for p in parameters]
            seen[f"requires_grad of the parameters of {name}"] = [p.requires_grad for p in parameters]
            seen[f"mode (training or evaluation) of {name}"] = [module.training for module in modules]
            hooks = 0
            for module in modules:
                hooks += len(module._forward_hooks) + len(module._forward_pre_hooks)
                hooks += len(module._backward_hooks) + len(module._backward_pre_hooks)
            seen[f"hooks of {name}"] = hooks

    @staticmethod
    def _read_optimizers(model: Any, seen: dict[str, Any]) -> None:
        for name in _OPTIMIZERS:
            optimizer = getattr(model, name)
            first, *_ = optimizer.param_groups
            settings = {}
            for key, value in first.items():
                if key not in ("params", "lr", "initial_lr"):
                    settings[key] = _plain(value)
            parameters = []
            for group in optimizer.param_groups:
                parameters.append([id(p) for p in group["params"]])
            seen[f"settings of {name}"] = settings
            seen[f"parameters of {name}"] = parameters
            seen[f"state of {name}"] = _same(optimizer.state)
            seen[f"step of {name}"] = _same(vars(optimizer).get("step"))
            hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
            seen[f"hooks of {name}"] = len(hooks[0]) + len(hooks[1])


def _settings_of(name: str, criterion: Any) -> tuple[dict[str, Any], Any, Any]:
    settings = getattr(criterion, "__dict__", {})
    kept = {}
    if name == "criterionGAN":
        all_settings = {**settings, **settings.get("_buffers", {})}
        for key in ("gan_mode", "real_label", "fake_label"):
            if key in all_settings:
                kept[key] = _plain(all_settings[key])
    return kept, settings.get("reduction"), settings.get("training")


def _difference(name: str, then: Any, now: Any) -> str:
    if isinstance(then, _Same) and isinstance(now, _Same):
        if then.value is now.value:
            return f"{name} was written to"
        return f"{name} is another ({now}, was {then})"
    if isinstance(then, (int, float, str, type(None))):
        return f"{name} is {now}, was {then}"
    if isinstance(then, dict) and isinstance(now, dict):
        first = next(key for key in {**then, **now} if then.get(key) != now.get(key))
        return f"{name}: {first} is {now.get(first)}, was {then.get(first)}"
    return f"{name} changed"


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
