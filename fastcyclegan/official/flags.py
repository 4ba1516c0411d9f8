"""Accept the flags of the official train.py that have other names, or no effect, here.

Notebooks and scripts for pytorch-CycleGAN-and-pix2pix carry them, some since 2017. Importing this module does
not import torch.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastcyclegan.errors import UserError
from fastcyclegan.files.schema import described

# Flags of the viewers, with a value. There is one page, which needs no server.
_OF_VIEWERS = (
    "display_id",
    "display_port",
    "display_env",
    "display_ncols",
    "display_single_pane_ncols",
    "display_server",
    "display_winsize",
    "update_html_freq",
)
_SWITCHES_WITHOUT_EFFECT = ("no_html", "verbose")
RENAMED = {
    "niter": "n_epochs",
    "niter_decay": "n_epochs_decay",
    "loadSize": "load_size",
    "fineSize": "crop_size",
    "batchSize": "batch_size",
    "nThreads": "num_threads",
    "which_direction": "direction",
    "which_epoch": "epoch",
    "which_model_netG": "netG",
    "which_model_netD": "netD",
    "resize_or_crop": "preprocess",
    "identity": "lambda_identity",
}
"""Names that flags had in 2017 and 2018, and their present names."""
ACCEPTED = (
    f"the old names --{', --'.join(RENAMED)}, --no_lsgan and --align_data; --load_iter N for --epoch iter_N;"
    " --suffix, which is appended to --name; --lambda_A for --lambda_L1 with recipes that have only the"
    " latter; and without effect"
    f" --{', --'.join((*_OF_VIEWERS, *_SWITCHES_WITHOUT_EFFECT))}, --phase train and, with recipes"
    " that have no image pool, --pool_size 0."
)
"""What ``translated`` accepts, for the help."""


def spelled(arg: str) -> str:
    """Return the name of the flag ``arg`` with _, without dashes and value; "" if it is not a flag."""
    if not arg.startswith("--"):
        return ""
    return arg[2:].partition("=")[0].replace("-", "_")


@dataclass
class OfficialFlags:
    """A command line in the flags of our train.py, and how it differs from the one that was given."""

    args: list[str] = field(default_factory=list)
    suffix: str | None = None
    """The value of --suffix, which is not among ``args``."""
    without_effect: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """Lines for the user: one for the flags without effect, and one for those that have other names."""
        lines = []
        if self.without_effect:
            lines.append(f"{', '.join(dict.fromkeys(self.without_effect))}: no effect here")
        if self.changed:
            lines.append(", ".join(self.changed))
        return lines


def translated(args: Sequence[str], model: str, own: Collection[str]) -> OfficialFlags:
    """Return the command line ``args`` of the official train.py in our flags. Others are left as they are.

    ``model`` is the name of the recipe, and ``own`` are the names of the flags that it adds. Raises UserError
    for a value that nothing here corresponds to, and for a setting that is given under its old and its new
    name.
    """
    result, rest = OfficialFlags(), list(args)
    with_value = _WITH_VALUE | (_OF_SOME_RECIPES - {*own})
    given = {spelled(arg) for arg in args}
    while rest:
        arg = rest.pop(0)
        name = spelled(arg)
        if name in _SWITCHES_WITHOUT_EFFECT and "=" not in arg:
            result.without_effect.append(arg)
        elif name == "no_lsgan" and "=" not in arg:
            _change(result, arg, "gan_mode", "vanilla", given)
        elif name == "align_data":
            _change(result, arg, "dataset_mode", "aligned", given)
        elif name in with_value:
            flag, equals, value = arg.partition("=")
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UserError(f"{flag}: no value given")
                value = rest.pop(0)
            if name in _OF_SOME_RECIPES:
                _translate_for(result, flag, value, given, model, own)
            else:
                _translate(result, flag, value, given)
        else:
            result.args.append(arg)
    return result


def _translate(result: OfficialFlags, flag: str, value: str, given: set[str]) -> None:
    """Add the flag ``flag``, which takes a value, to ``result``."""
    name = spelled(flag)
    if name in _OF_VIEWERS:
        result.without_effect.append(flag)
    elif name in RENAMED:
        _change(result, flag, RENAMED[name], value, given)
    elif name == "suffix":
        result.suffix = value
    elif name == "phase":
        _require_training(flag, value)
        result.without_effect.append(flag)
    elif name == "load_iter":
        _load_iteration(result, flag, value, given)
    elif name == "lr_policy" and value == "lambda":
        _change(result, flag, "lr_policy", "linear", given)
    elif name == "max_dataset_size" and value.lower() in ("inf", "infinity"):
        result.args.append(f"--{name}=None")
    else:
        result.args.append(f"{flag}={value}")


def _translate_for(
    result: OfficialFlags, flag: str, value: str, given: set[str], model: str, own: Collection[str]
) -> None:
    """Add the flag ``flag``, which all official models had once, for a recipe that does not have it."""
    if spelled(flag) == "lambda_A" and "lambda_L1" in own:
        _change(result, flag, "lambda_L1", value, given)
    elif spelled(flag) == "pool_size":
        if value != "0":
            raise UserError(f"{flag} {value}: --model {model} has no image pool; leave it out, or give 0")
        result.without_effect.append(flag)
    else:
        result.args.append(f"{flag}={value}")


_OF_SOME_RECIPES = {"lambda_A", "pool_size"}
_WITH_VALUE = {
    *_OF_VIEWERS,
    *RENAMED,
    "suffix",
    "phase",
    "load_iter",
    "lr_policy",
    "max_dataset_size",
}


RESERVED = frozenset({*_WITH_VALUE, *_SWITCHES_WITHOUT_EFFECT, "no_lsgan", "align_data"})
"""Flags that stand for others, so no recipe can have a flag of that name."""


def _change(result: OfficialFlags, flag: str, name: str, value: str, given: set[str]) -> None:
    """Add the setting ``name`` in place of ``flag``. Raises UserError if it is given as well."""
    if name in given and name != spelled(flag):
        raise UserError(f"{flag} is an old name of --{name}: give only one of them")
    now = f"--{name}"
    if spelled(flag) not in RENAMED and name != "lambda_L1":
        now += f" {value}"
    before = f"{flag} lambda" if spelled(flag) == name else flag
    result.args.append(f"--{name}={value}")
    result.changed.append(f"{before} is now {now}")


def _require_training(flag: str, value: str) -> None:
    if value != "train":
        raise UserError(
            f"{flag} {value}: give the folders with --data_A and --data_B, such as {value}A and {value}B of"
            " the dataset"
        )


def _load_iteration(result: OfficialFlags, flag: str, value: str, given: set[str]) -> None:
    """Add --epoch iter_N in place of --load_iter N; the official code ignores N = 0."""
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise UserError(f"{flag} must be an integer of at least 0, got {described(value)}")
    if int(value) == 0:
        result.without_effect.append(flag)
        return
    if "continue_train" not in given:
        raise UserError(f"{flag} needs --continue_train")
    for other in ("epoch", "which_epoch"):
        if other in given:
            raise UserError(f"{flag} and --{other} both choose the weights: give only one of them")
    result.args.append(f"--epoch=iter_{int(value)}")
    result.changed.append(f"{flag} {value} is now --epoch iter_{int(value)}")


def with_suffix(args: Sequence[str], suffix: str, settings: Mapping[str, Any]) -> list[str]:
    """Return ``args`` with ``suffix`` appended to the value of --name by the official rule.

    That is NAME_SUFFIX, with each {setting} in the suffix replaced by its value in ``settings``. Raises
    UserError without --name, and for a suffix that cannot be filled in.
    """
    if "name" not in settings or not settings["name"]:
        raise UserError("--suffix needs --name")
    values = {**settings, **{old: settings[new] for old, new in RENAMED.items() if new in settings}}
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(suffix) if name is not None]
    except ValueError as error:
        raise UserError(f"--suffix {suffix}: {error}") from None
    for name in fields:
        if name not in values:
            raise UserError(f"--suffix {suffix}: there is no setting {described(name)}")
    try:
        name = f"{settings['name']}_{suffix.format(**values)}"
    except (ValueError, TypeError, LookupError, AttributeError, MemoryError) as error:
        raise UserError(f"--suffix {suffix}: {error}") from None
    return [*_without(args, "name"), f"--name={name}"]


def _without(args: Sequence[str], name: str) -> list[str]:
    """Return ``args`` without the flag ``name`` and its value."""
    kept, skip = [], False
    for arg in args:
        if skip:
            skip = False
        elif spelled(arg) == name:
            skip = "=" not in arg
        else:
            kept.append(arg)
    return kept
