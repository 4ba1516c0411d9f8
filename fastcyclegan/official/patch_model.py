"""Replace the ``optimize_parameters`` of an official CycleGANModel with our training step.

Losses, images and saved files are still available to the checkout under the official names.
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

from fastcyclegan.engine import replaces_compiler, require_impl, resolve_precision, why_not_compiled
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import computed_by, is_ours
from fastcyclegan.official.change_guard import ChangeGuard, hand_back
from fastcyclegan.official.equivalence import ITERATIONS, compare_steps
from fastcyclegan.official.patch_networks import Log
from fastcyclegan.official.source_check import why_not_known
from fastcyclegan.official.step import NotReplaceableError, Settings, Step, learning_rate, read_settings

# Computed when they are read, because our iteration keeps no images.
IMAGES = ("fake_B", "rec_A", "fake_A", "rec_B", "idt_A", "idt_B")
_STEP, _GUARD = "_fastcyclegan_step", "_fastcyclegan_guard"
_NO_STEP = (
    "{} applies only to the training step of --model cycle_gan; for this model, only networks are replaced"
)


@dataclass(frozen=True)
class Options:
    """fastcyclegan's own flags, as given on the command line (see ``__main__.py``)."""

    precision: str = "auto"
    compile: bool = False
    impl: str = "auto"


def replace_step(module: ModuleType, options: Options, log: Log) -> None:
    """Make a checkout's ``CycleGANModel`` run our training step if it is equivalent.

    ``module`` is the checkout's models/cycle_gan_model.py. The first call of ``optimize_parameters`` tests
    whether the steps are equivalent. Every later call checks whether anything that the step depends on has
    changed; if so, the checkout's own step takes over from there. Losses become scalars on the device.
    Images such as ``fake_B`` are computed when they are read, from the current batch and the current weights,
    which have already been updated. ``save_networks`` runs the checkout's own method on copies of the
    networks, because it moves them to the host, and a captured iteration needs its networks to stay where
    they are.
    """
    cls = getattr(module, "CycleGANModel", None)
    missing = _missing_member(cls)
    if cls is None or missing:
        log(f"training step: not replaced: {module.__file__} has no {missing}")
        return
    official, save = cls.optimize_parameters, cls.save_networks

    @functools.wraps(official)
    def optimize_parameters(self: Any, *args: Any, **kwargs: Any) -> None:
        if _STEP not in vars(self):
            vars(self)[_STEP] = _choose_step(self, cls, official, options, log, bool(args or kwargs))
        if vars(self)[_STEP] is not None:
            _hand_back_if_changed(self, log, bool(args or kwargs))
        step = vars(self)[_STEP]
        if step is None:
            official(self, *args, **kwargs)
        else:
            _run_iteration(self, step)

    @functools.wraps(save)
    def save_networks(self: Any, *args: Any, **kwargs: Any) -> Any:
        if vars(self).get(_STEP) is None:
            return save(self, *args, **kwargs)
        return _save_copies(self, save, *args, **kwargs)

    cls.optimize_parameters, cls.save_networks = optimize_parameters, save_networks
    cls.__getattr__ = _lazy_attributes(getattr(cls, "__getattr__", None))


def _missing_member(cls: type | None) -> str:
    """Return the first required class or method that the checkout lacks, or ""."""
    if cls is None:
        return "CycleGANModel"
    for name in ("optimize_parameters", "save_networks", "set_input"):
        if not hasattr(cls, name):
            return f"CycleGANModel.{name}"
    return ""


def _choose_step(
    model: Any, cls: type, official: Callable[[Any], Any], options: Options, log: Log, with_arguments: bool
) -> Step | None:
    """Return our step for ``model``. If the checkout's own should run, log why and return None."""
    try:
        if with_arguments:
            raise NotReplaceableError("optimize_parameters is called with arguments")
        if type(model) is not cls:
            raise NotReplaceableError(f"{type(model).__name__} is a subclass of CycleGANModel")
        settings = read_settings(model)
        reason = why_not_known(model, official)
        if reason:
            raise NotReplaceableError(reason)
        log(
            "comparing the checkout's training step with fastcyclegan's in float64, once (on a CPU this takes"
            " as long as several iterations)"
        )
        difference = compare_steps(model, official, settings)
    except NotReplaceableError as error:
        log(f"training step: not replaced: {error}{_without_effect(options)}")
        return None
    step = _build_step(settings, options, log)
    for name, phase in (("optimizer_G", "G"), ("optimizer_D", "D")):
        # So that code that reads the checkout's optimizers, for example to save them, gets the current
        # moments.
        getattr(model, name).state = step.engine.optimizers[phase].state
    vars(model)[_GUARD] = ChangeGuard(model)
    engine = step.engine
    mode = engine.choices.precision
    if engine.choices.compiled:
        mode += ", compiled"
    impls = " and ".join(sorted({computed_by(net) for net in engine.nets.values()}))
    log(
        f"training step: replaced by fastcyclegan's, on {engine.device} in {mode}, networks computed by"
        f" {impls}; over {ITERATIONS} iterations in float64 it differed from the checkout's own by"
        f" {difference:.0e}"
    )
    return step


def _without_effect(options: Options) -> str:
    """Return a note listing the given flags that the checkout's own step ignores, or "" if there are none."""
    ignored = []
    if options.compile:
        ignored.append("--compile")
    if options.precision == "bf16":
        ignored.append("--precision")
    if not ignored:
        return ""
    return f" (ignored: {' '.join(ignored)})"


def _build_step(settings: Settings, options: Options, log: Log) -> Step:
    compiled = options.compile and not replaces_compiler(options.impl, settings.device)
    precision = resolve_precision(options.precision, settings.device, options.compile)
    if compiled:
        reason = why_not_compiled(settings.device)
        if reason:
            log(f"not compiled: {reason}")
            compiled = False
            precision = resolve_precision(options.precision, settings.device, False)
    elif options.compile:
        log("not compiled: the C++ kernels are faster on a CPU")
    return Step(settings, precision, compiled, log)


def _hand_back_if_changed(model: Any, log: Log, with_arguments: bool) -> None:
    """If anything that our step depends on has changed, return to the checkout's own step and log why."""
    attributes = vars(model)
    change = attributes[_GUARD].find_change(model)
    if not change and with_arguments:
        change = "optimize_parameters is called with arguments"
    if change:
        summary = hand_back(model, attributes[_STEP])
        attributes[_STEP] = attributes[_GUARD] = None
        log(f"training step: back to the checkout's own: {change}; {summary}")


def _run_iteration(model: Any, step: Step) -> None:
    losses = step(model.real_A, model.real_B, learning_rate(model))
    attributes = vars(model)
    for name in (*IMAGES, "loss_G"):
        attributes.pop(name, None)
    # The official step sets these values if there is no identity loss.
    attributes["loss_idt_A"] = attributes["loss_idt_B"] = 0
    for name, loss in losses.items():
        attributes[f"loss_{name}"] = loss
    for optimizer in (model.optimizer_G, model.optimizer_D):
        # Schedulers warn if they step before their optimizer does. Our step has stepped in its place.
        optimizer._opt_called = True
    attributes[_GUARD].record_step(model)


def _lazy_attributes(fallback: Callable[[Any, str], Any] | None) -> Callable[[Any, str], Any]:
    """Return a ``__getattr__`` that computes the images and the total loss of our iteration when read.

    Other names are passed to ``fallback``, the class's previous ``__getattr__`` if it had one.
    """

    def attribute(self: Any, name: str) -> Any:
        step = vars(self).get(_STEP)
        if step is not None and name == "loss_G" and step.losses:
            return step.generator_loss()
        if step is not None and name in IMAGES:
            images = step.images(self.real_A, self.real_B)
            if name in images:
                vars(self).update(images)
                return images[name]
        if fallback is not None:
            return fallback(self, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    return attribute


def _save_copies(model: Any, save: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``save`` with the networks of ``model`` replaced by copies in torch's default memory layout."""
    nets = {f"net{name}": getattr(model, f"net{name}") for name in model.model_names}
    try:
        for name, net in nets.items():
            vars(model)[name] = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
        return save(model, *args, **kwargs)
    finally:
        vars(model).update(nets)


def check_setup(module: ModuleType, options: Options, log: Log) -> None:
    """Make a checkout's ``BaseModel.setup`` check our flags first.

    ``module`` is the checkout's models/base_model.py. Flags that the model does not support raise UserError
    before anything runs. Where kernels compute our networks, ``setup`` also converts them to channels_last,
    the layout that the kernels read. For a model whose step we do not have, it logs that the checkout's own
    trains it.
    """
    cls = getattr(module, "BaseModel", None)
    official = getattr(cls, "setup", None)
    if cls is None or official is None:
        log(
            f"{module.__file__} has no BaseModel.setup, so fastcyclegan's flags cannot be checked before"
            " training starts"
        )
        return

    @functools.wraps(official)
    def setup(self: Any, *args: Any, **kwargs: Any) -> Any:
        _check_options(self, options)
        result = official(self, *args, **kwargs)
        if getattr(self, "isTrain", False) and not _has_step(self):
            log(
                f"training step: not replaced: fastcyclegan's is for CycleGANModel, not {type(self).__name__}"
            )
        for name in self.model_names:
            net = getattr(self, f"net{name}")
            if isinstance(net, nn.DataParallel):
                net = net.module
            if is_ours(net) and (next(net.parameters()).is_cuda or computed_by(net) == "cpp"):
                net.to(memory_format=torch.channels_last)
        return result

    cls.setup = setup


def _check_options(model: Any, options: Options) -> None:
    """Raise UserError if ``model`` does not support one of our flags."""
    device = torch.device(getattr(model, "device", "cpu"))
    require_impl(options.impl, device)
    if _has_step(model):
        resolve_precision(options.precision, device, options.compile)
    elif options.precision == "bf16":
        raise UserError(_NO_STEP.format("--precision bf16"))
    elif options.compile:
        raise UserError(_NO_STEP.format("--compile"))


def _has_step(model: Any) -> bool:
    """Return whether ``model`` will be trained by a step that ours could replace."""
    if not getattr(model, "isTrain", False):
        return False
    return hasattr(type(model), "optimize_parameters") and type(model).__name__ == "CycleGANModel"
