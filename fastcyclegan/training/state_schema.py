"""The schema of a training state: what each part must be so that a run can resume from it.

A state is checked as a whole before any of it is used. The parts are compared with what a new run of the same
configuration would save: its networks, one Adam optimizer per phase, what its recipe carries, its random
generators and the training loop's own numbers. A part that is not listed here is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcyclegan.config import TrainConfig, from_dict, to_dict
from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import (
    MisfitError,
    Rule,
    described,
    entries,
    exactly,
    joined,
    list_of,
    nothing_or,
    number,
    record,
    text,
    unchecked,
    whole,
)
from fastcyclegan.files.tensor_rules import tensor
from fastcyclegan.recipes.recipe import Recipe
from fastcyclegan.training.evaluation_history import from_text
from fastcyclegan.training.lr_schedule import PlateauSchedule
from fastcyclegan.training.run import STATE_VERSION, TENSORS

Size = tuple[int, int]
"""Height and width of an image."""

# Settings that must not change after a state was saved. They determine the samples and their order. A recipe
# adds those that determine what it carries from one iteration to the next.
FIXED = (
    *(("data", name) for name in ("direction", "dataset_mode", "batch_size", "serial_batches")),
    ("run", "seed"),
)
# Settings that determine the shapes of a part of a state. They can only change if those stay the same.
_OF_IMAGES = (("data", "crop_size"), ("data", "preprocess"))
_NOT_OF_SHAPES = ("model", "impl", "init_type", "init_gain")
_PARTS = ("iteration", "first", "pictures", "config", "extra", "nets", "optimizers", "recipe", "rng")
# Python's floats and torch's seeds count exactly up to here.
_MOST = 2**53
# Adam counts its steps in fp32, which stops here.
_MOST_STEPS = 2**24
# The logarithms of the smallest and the largest sum of losses that ``LossWatch`` adds up.
_LOG_LOSSES = (-19.0, 710.0)
_CUDA_BYTES = 16
"""Size of the state of a CUDA generator: its seed and its offset, as 64-bit integers."""


@dataclass(frozen=True)
class Expected:
    """What a state must fit. ``sizes`` are those of the images, by domain; None allows any."""

    config: TrainConfig
    recipe: Recipe
    nets: Mapping[str, nn.Module]
    sizes: Mapping[str, Size] | None = None


def saved_config(state: Any, source: Path | str) -> TrainConfig:
    """Return the configuration in ``state``. ``source`` names the state in messages.

    Raises UserError if ``state`` is not a training state of this version, or its configuration is not valid.
    """
    version = state.get("version") if isinstance(state, Mapping) else None
    if type(version) is not int or version != STATE_VERSION or not all(part in state for part in _PARTS):
        raise UserError(f"{source}: not a training state that this version can resume")
    try:
        return from_dict(state["config"])
    except UserError as error:
        raise UserError(f"{source}: its configuration is not valid: {error}") from None


def check_settings(state: Any, config: TrainConfig, source: Path | str) -> None:
    """Raise UserError if ``config`` differs from that of ``state`` in a setting that must not change."""
    saved = saved_config(state, source)
    if saved.model.model != config.model.model:
        raise UserError(
            f"{source}: this is a state of --model {saved.model.model}, which cannot be continued with"
            f" --model {config.model.model}"
        )
    fixed = (*FIXED, *(("loss", name) for name in config.recipe.fixed))
    changed = _changed(fixed, saved, config)
    if changed:
        raise UserError(f"{source}: {changed}")


def _changed(settings: Sequence[tuple[str, str]], saved: TrainConfig, current: TrainConfig) -> str:
    """Return a sentence about the first of ``settings`` that differs, or ""."""
    was, now = to_dict(saved), to_dict(current)
    for group, name in settings:
        before, after = was[group][name], now[group][name]
        if before != after:
            was_now = f"was {_written(before)} and cannot change to {_written(after)}"
            return f"{name} {was_now} in the middle of a run"
    return ""


def _written(value: Any) -> str:
    """Return the ``value`` of a setting as it is written on a command line."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def check_state(state: Any, expected: Expected, source: Path | str, if_damaged: str = "") -> None:
    """Raise UserError if a part of ``state`` is not what a run of the same configuration would save.

    The message names ``source`` and the part, and ends with ``if_damaged`` unless a setting is the cause.
    """
    saved = saved_config(state, source)
    nets = state["nets"]
    if not isinstance(nets, Mapping) or set(nets) != set(expected.recipe.networks):
        raise UserError(f"{source}: the networks in this file are not those of {expected.recipe.title}")
    try:
        whole(0, _MOST)(state["iteration"], "iteration")
        whole(0, state["iteration"])(state["first"], "first")
        record(*_rules(expected, saved, state["iteration"], state["first"]))(state, "")
        _require_steps(state)
    except MisfitError as misfit:
        changed = _changed(_shaping(misfit.place.partition(".")[0], saved), saved, expected.config)
        raise UserError(f"{source}: {changed if changed else str(misfit) + if_damaged}") from None


def _shaping(part: str, saved: TrainConfig) -> tuple[tuple[str, str], ...]:
    """Return the settings that determine the shapes of a ``part`` of a state, as (group, name)."""
    if part in ("nets", "ema", "optimizers"):
        names = [setting.name for setting in dataclasses.fields(saved.model)]
        return tuple(("model", name) for name in names if name not in _NOT_OF_SHAPES)
    if part == "recipe":
        load_size = (("data", "load_size"),) if saved.data.preprocess == "scale_width" else ()
        return (*_OF_IMAGES, *load_size)
    return ()


def _require_steps(state: Mapping[str, Any]) -> None:
    """Raise MisfitError unless Adam has taken a step of one of the phases in every iteration."""
    moments = [optimizer["state"].values() for optimizer in state["optimizers"].values()]
    steps = sum(max((one["step"].item() for one in phase), default=0.0) for phase in moments)
    least = min(state["iteration"] - state["first"], _MOST_STEPS)
    if any(moments) and steps < least:  # there are none if all networks are frozen
        found = f"Adam took only {steps:g} steps after iteration {state['first']}"
        raise MisfitError("iteration", f"is {state['iteration']}, but {found}")


def _rules(
    expected: Expected, saved: TrainConfig, iteration: int, first: int
) -> tuple[dict[Any, Rule], dict[Any, Rule]]:
    """Return the rules of the required and of the optional parts of a state."""
    weights = {name: _weights(net) for name, net in expected.nets.items()}
    averages = {name: weights[name] for name in expected.recipe.averaged}
    optimizers = {}
    for phase in (phase for phase in expected.recipe.phases() if phase.trains):
        # A phase that is repeated may have been repeated more often before its settings changed.
        most = iteration - first if expected.recipe.phases_may_overlap else _MOST_STEPS
        trained = [expected.nets[name].parameters() for name in phase.trains]
        optimizers[phase.name] = _adam(list(itertools.chain.from_iterable(trained)), most)
    optional = {"loader": text("dali", "folder", TENSORS)}
    required = {
        "version": exactly(STATE_VERSION),
        "iteration": whole(0, _MOST),
        "first": whole(0, iteration),
        "pictures": nothing_or(list_of(text(), len(saved.data.sides))),
        "config": unchecked,  # saved_config has checked it
        "extra": _loop(iteration),
        "nets": record(weights),
        "optimizers": record(optimizers),
        "recipe": record(expected.recipe.state_rules(expected.sizes)),
        "rng": record({"cpu": _generator, "cuda": nothing_or(_cuda_generator)}),
    }
    # If a run keeps averages from its resumption on, they begin with the restored weights.
    (required if saved.optim.ema else optional)["ema"] = record(averages)
    return required, optional


# --- Networks and optimizers --------------------------------------------------------------------------------


def _weights(net: nn.Module) -> Rule:
    """Return the rule for the state_dict of ``net``."""
    rules = {}
    for key, value in net.state_dict().items():
        is_count = key.endswith(("running_var", "num_batches_tracked"))
        rules[key] = tensor(tuple(value.shape), value.dtype, 0.0 if is_count else -math.inf)
    return record(rules)


def _adam(parameters: Sequence[nn.Parameter], steps: int) -> Rule:
    """Return the rule for the state of an Adam optimizer for ``parameters`` after at most ``steps``."""
    moments = {n: _moments(p, steps) for n, p in enumerate(parameters)}
    rule = record(
        {"state": record({}, moments), "param_groups": list_of(_group(len(parameters)), 1)},
        {"untrained": list_of(whole(0, len(parameters) - 1))},
    )

    def check(value: Any, place: str) -> None:
        rule(value, place)
        untrained = set(value.get("untrained", ()))
        for n in moments:
            if (n in value["state"]) == (n in untrained):
                problem = "is unexpected" if n in untrained else "is missing"
                raise MisfitError(joined(joined(place, "state"), n), problem)

    return check


def _moments(p: nn.Parameter, steps: int) -> Rule:
    shape = tuple(p.shape)
    count = tensor((), torch.float32, 1.0, float(steps))

    def step(value: Any, place: str) -> None:
        count(value, place)
        if not value.item().is_integer():
            raise MisfitError(place, f"must be a whole number, got {value.item()}")

    return record(
        {"step": step, "exp_avg": tensor(shape, p.dtype), "exp_avg_sq": tensor(shape, p.dtype, 0.0)}
    )


def _group(count: int) -> Rule:
    """Return the rule for an optimizer's group of ``count`` parameters.

    Its settings are ignored, because Adam keeps those of the run, but they must be plain values.
    """

    def check(value: Any, place: str) -> None:
        group = entries(value, place)
        numbers = group.get("params")
        if not isinstance(numbers, list) or numbers != list(range(count)):
            raise MisfitError(joined(place, "params"), f"must be the numbers of all {count} parameters")
        for name, setting in group.items():
            text()(name, joined(place, "a name"))
            if name == "params":
                continue
            several = isinstance(setting, (list, tuple)) and len(setting) <= 2
            for single in setting if several else (setting,):
                if single is not None and not isinstance(single, (bool, int, float, str)):
                    raise MisfitError(joined(place, name), f"must be a plain value, got {described(single)}")

    return check


# --- Random generators and the training loop ----------------------------------------------------------------


def _generator(value: Any, place: str) -> None:
    """Check the state of torch's generator on the CPU."""
    tensor(tuple(torch.get_rng_state().shape), torch.uint8)(value, place)
    try:
        torch.Generator().set_state(value.clone(memory_format=torch.contiguous_format))
    except RuntimeError:
        raise MisfitError(place, "is not a state of torch's random generator") from None


def _cuda_generator(value: Any, place: str) -> None:
    tensor((_CUDA_BYTES,), torch.uint8)(value, place)
    _, offset = value.clone().view(torch.int64).tolist()
    if offset < 0 or offset % 4:
        raise MisfitError(place, "is not a state of torch's random generator of a GPU")


def _loop(iteration: int) -> Rule:
    """Return the rule for what the training loop itself saves after ``iteration``."""
    plateau = record(
        {
            "factor": number(0.0, 1.0),
            "best": number(infinite=True),
            "bad_epochs": number(0.0, float(PlateauSchedule.PATIENCE)),
        }
    )

    def schedule(value: Any, place: str) -> None:
        if entries(value, place):  # only this policy keeps a state
            plateau(value, place)

    return record(
        {"schedule": schedule, "epoch_loss": number()},
        {
            "losses": _losses(iteration),
            "unlogged": list_of(_log_record(iteration)),
            "evaluations": _history(iteration),
        },
    )


def _history(iteration: int) -> Rule:
    """Return the rule for the history of the evaluations until ``iteration``, as text."""

    def check(value: Any, place: str) -> None:
        try:
            records = from_text(value).records
        except MisfitError as misfit:
            raise MisfitError(
                joined(place, misfit.place) if misfit.place else place, misfit.problem
            ) from None
        if records:
            whole(0, iteration)(records[-1]["iteration"], joined(place, "records"))

    return check


def _losses(iteration: int) -> Rule:
    """Return the rule for the sum and the number of the logarithms of the losses."""

    def check(value: Any, place: str) -> None:
        list_of(number(), 2)(value, place)
        log_sum, count = value
        whole(0, iteration)(count, joined(place, 1))
        low, high = _LOG_LOSSES
        number(low * count, high * count)(log_sum, joined(place, 0))

    return check


def _log_record(iteration: int) -> Rule:
    counts = {"iteration": whole(1, max(1, iteration)), "epoch": whole(1, _MOST)}
    rates = dict.fromkeys(("lr", "it/s", "images/s"), number())

    def check(value: Any, place: str) -> None:
        names = [name for name in entries(value, place) if isinstance(name, str)]
        losses = {name: number() for name in names if name not in counts}
        record({**counts, **rates}, losses)(value, place)

    return check
