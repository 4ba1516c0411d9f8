"""Our step in the place of an official CycleGANModel's ``optimize_parameters``, and what its owner sees of
it: losses, images, files.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fastcyclegan.engine import require_impl, resolve_precision, why_not_compiled
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import computed_by, is_ours
from fastcyclegan.official.change_guard import ChangeGuard, hand_over
from fastcyclegan.official.equivalence import ITERATIONS, prove
from fastcyclegan.official.patch_networks import Log
from fastcyclegan.official.source_check import why_not_public
from fastcyclegan.official.step import NotServedError, Settings, Step, learning_rate, settings

# Made when they are asked for: an iteration of ours keeps no images.
IMAGES = ("fake_B", "rec_A", "fake_A", "rec_B", "idt_A", "idt_B")
_STEP, _GUARD = "_fastcyclegan_step", "_fastcyclegan_guard"
_NO_STEP = "{} belongs to the training step of --model cycle_gan; here the networks alone are replaced"


@dataclass(frozen=True)
class Options:
    """What the command line says of us: see ``__main__.py``."""

    precision: str = "auto"
    compile: bool = False
    impl: str = "auto"


def replace_step(module: ModuleType, options: Options, log: Log) -> None:
    """Have ``CycleGANModel`` of ``module`` (a checkout's models/cycle_gan_model.py) run our iteration where
    that is the same.

    The first call of ``optimize_parameters`` decides, and every later one looks whether what the step depends
    on is what it was: where it is not, the checkout's own step goes on from there. Losses become scalars on
    the device. Images such as ``fake_B`` are made when they are asked for, of the current batch by the
    weights of that moment, so after the update. ``save_networks`` is the checkout's own on copies of the
    networks: it moves them to the host, and a captured iteration needs them where they are.
    """
    cls = getattr(module, "CycleGANModel", None)
    lacking = _lacking(cls)
    if cls is None or lacking:
        log(f"step: the checkout's own: {module.__file__} has no {lacking}")
        return
    theirs, save = cls.optimize_parameters, cls.save_networks

    @functools.wraps(theirs)
    def optimize_parameters(self: Any, *args: Any, **kwargs: Any) -> None:
        if _STEP not in vars(self):
            vars(self)[_STEP] = _decide(self, cls, theirs, options, log, bool(args or kwargs))
        if vars(self)[_STEP] is not None:
            _look(self, log, bool(args or kwargs))
        step = vars(self)[_STEP]
        if step is None:
            theirs(self, *args, **kwargs)
        else:
            _iterate(self, step)

    @functools.wraps(save)
    def save_networks(self: Any, *args: Any, **kwargs: Any) -> Any:
        if vars(self).get(_STEP) is None:
            return save(self, *args, **kwargs)
        return _save_copies(self, save, *args, **kwargs)

    cls.optimize_parameters, cls.save_networks = optimize_parameters, save_networks
    cls.__getattr__ = _attribute(getattr(cls, "__getattr__", None))


def _lacking(cls: type | None) -> str:
    """Return what a checkout's model has not that is to be replaced, "" where all is there."""
    if cls is None:
        return "CycleGANModel"
    for name in ("optimize_parameters", "save_networks", "set_input"):
        if not hasattr(cls, name):
            return f"CycleGANModel.{name}"
    return ""


def _decide(
    model: Any, cls: type, theirs: Callable[[Any], Any], options: Options, log: Log, with_arguments: bool
) -> Step | None:
    """Return our step over the networks of ``model``, or None where its own is to run; say which."""
    try:
        if with_arguments:
            raise NotServedError("it takes arguments")
        if type(model) is not cls:
            raise NotServedError(f"{type(model).__name__} is a class of its own")
        given = settings(model)
        other = why_not_public(model, theirs)
        if other:
            raise NotServedError(other)
        log(
            "comparing the step with ours in float64, once (on a processor this takes as long as some"
            " iterations)"
        )
        difference = prove(model, theirs, given)
    except NotServedError as error:
        log(f"step: the checkout's own: {error}{_without_effect(options)}")
        return None
    step = _made(given, options, log)
    for name, phase in (("optimizer_G", "G"), ("optimizer_D", "D")):
        # Who looks at the checkout's optimizers, to save them for one, finds the moments that are in use.
        getattr(model, name).state = step.engine.optimizers[phase].state
    vars(model)[_GUARD] = ChangeGuard(model)
    engine = step.engine
    how = engine.choices.precision
    if engine.choices.compiled:
        how += ", compiled"
    impls = " and ".join(sorted({computed_by(net) for net in engine.nets.values()}))
    log(
        f"step: ours, on {engine.device} in {how}, networks by {impls}; {ITERATIONS} iterations in float64"
        f" differed by {difference:.0e} from the checkout's own"
    )
    return step


def _without_effect(options: Options) -> str:
    """Return which of our flags the checkout's own step does not know, "" where none was given."""
    ignored = []
    if options.compile:
        ignored.append("--compile")
    if options.precision == "bf16":
        ignored.append("--precision")
    if not ignored:
        return ""
    return f" (without effect on it: {' '.join(ignored)})"


def _made(given: Settings, options: Options, log: Log) -> Step:
    compiled = options.compile
    if compiled:
        reason = why_not_compiled(given.device)
        if reason:
            log(f"not compiled: {reason}")
            compiled = False
    return Step(given, resolve_precision(options.precision, given.device, compiled), compiled, log)


def _look(model: Any, log: Log, with_arguments: bool) -> None:
    """Hand over to the checkout's own step where what ours was made for has changed, and say what."""
    own = vars(model)
    changed = own[_GUARD].changed(model)
    if not changed and with_arguments:
        changed = "it takes arguments"
    if changed:
        how = hand_over(model, own[_STEP])
        own[_STEP] = own[_GUARD] = None
        log(f"step: the checkout's own from here on: {changed}; {how}")


def _iterate(model: Any, step: Step) -> None:
    losses = step(model.real_A, model.real_B, learning_rate(model))
    own = vars(model)
    for name in (*IMAGES, "loss_G"):
        own.pop(name, None)
    # Without the identity loss.
    own["loss_idt_A"] = own["loss_idt_B"] = 0
    for name, loss in losses.items():
        own[f"loss_{name}"] = loss
    for optimizer in (model.optimizer_G, model.optimizer_D):
        # Schedulers warn of optimizers that made no step before theirs; ours made it.
        optimizer._opt_called = True
    own[_GUARD].stepped(model)


def _attribute(otherwise: Callable[[Any, str], Any] | None) -> Callable[[Any, str], Any]:
    """Return a ``__getattr__`` that makes what an iteration of ours does not leave behind."""

    def attribute(self: Any, name: str) -> Any:
        step = vars(self).get(_STEP)
        if step is not None and name == "loss_G" and step.losses:
            return step.generator_loss()
        if step is not None and name in IMAGES:
            made = step.images(self.real_A, self.real_B)
            if name in made:
                vars(self).update(made)
                return made[name]
        if otherwise is not None:
            return otherwise(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    return attribute


def _save_copies(model: Any, save: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``save`` while the networks of ``model`` are copies in torch's usual memory layout."""
    nets = {f"net{name}": getattr(model, f"net{name}") for name in model.model_names}
    try:
        for name, net in nets.items():
            vars(model)[name] = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
        return save(model, *args, **kwargs)
    finally:
        vars(model).update(nets)


def check_setup(module: ModuleType, options: Options, log: Log) -> None:
    """Have ``BaseModel.setup`` of ``module`` (a checkout's models/base_model.py) refuse what cannot be
    served, before anything runs.

    On a GPU it then puts our networks into channels_last, the layout that the kernels read.
    """
    cls = getattr(module, "BaseModel", None)
    theirs = getattr(cls, "setup", None)
    if cls is None or theirs is None:
        log(
            f"{module.__file__} has no BaseModel.setup: what our flags ask for is not checked before training"
        )
        return

    @functools.wraps(theirs)
    def setup(self: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse(self, options)
        result = theirs(self, *args, **kwargs)
        for name in self.model_names:
            net = getattr(self, f"net{name}")
            if isinstance(net, nn.DataParallel):
                net = net.module
            if is_ours(net) and next(net.parameters()).is_cuda:
                net.to(memory_format=torch.channels_last)
        return result

    cls.setup = setup


def _refuse(model: Any, options: Options) -> None:
    """Raise UserError for flags of ours that ``model`` cannot obey."""
    device = torch.device(getattr(model, "device", "cpu"))
    require_impl(options.impl, device)
    if _has_step(model):
        resolve_precision(options.precision, device, options.compile)
    elif options.precision == "bf16":
        raise UserError(_NO_STEP.format("--precision bf16"))
    elif options.compile:
        raise UserError(_NO_STEP.format("--compile"))


def _has_step(model: Any) -> bool:
    """Return whether ``model`` is to be trained by a step that ours can replace."""
    if not getattr(model, "isTrain", False):
        return False
    return hasattr(type(model), "optimize_parameters") and type(model).__name__ == "CycleGANModel"
