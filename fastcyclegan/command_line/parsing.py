"""Parse a command line into a dataclass of settings. tyro generates the options from the dataclass.

A mistake is one line that names the flag. Importing this module does not import torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import tyro

from fastcyclegan.errors import UserError
from fastcyclegan.settings.arguments import require_known, typed_values
from fastcyclegan.settings.crop_size import CropSize, flag_value, joined_arguments, parsed_crop_size

Config = TypeVar("Config")

_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)


def description(kind: type) -> str:
    """Return the docstring of ``kind`` as one paragraph."""
    return " ".join(str(kind.__doc__).split())


def parse(
    kind: type[Config],
    args: Sequence[str] | None,
    text: str,
    default: Config | None = None,
    owners: Callable[[str], Sequence[str]] = lambda flag: (),
) -> Config:
    """Return the ``kind`` that ``args`` describe. ``text`` is what --help says first.

    ``owners`` returns the names of the recipes that have a flag. Raises UserError for a wrong value or an
    unknown flag.
    """
    args = arguments(args)
    if not asks_for_help(args):
        typed_values(kind, flags_in(args))
    options: dict[str, Any] = {}
    if default is not None:
        options["default"] = default
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_crop_size_rule)
    parsed, unknown = tyro.cli(
        kind,
        args=None if args is None else joined_arguments(args),
        description=text,
        config=_MARKERS,
        use_underscores=True,
        return_unknown_args=True,
        registry=registry,
        **options,
    )
    require_known(kind, unknown, owners)
    return parsed


def _crop_size_rule(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Tell tyro how --crop_size is written: as the one argument that ``joined_arguments`` makes."""
    if info.type != CropSize:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="SIDE|HEIGHT WIDTH",
        instance_from_str=lambda args: parsed_crop_size(args[0]),
        is_instance=lambda value: isinstance(value, (int, tuple)),
        str_from_instance=lambda value: [flag_value(value)],
    )


def asks_for_help(args: Sequence[str]) -> bool:
    return "--help" in args or "-h" in args


def arguments(args: Sequence[str] | None) -> Sequence[str]:
    """Return ``args``, or the arguments of the process if None.

    Raises UserError for an empty value, for example from an unset shell variable. As a path, it would mean
    the current folder.
    """
    if args is None:
        args = sys.argv[1:]
    for flag, value in zip(["", *args], args, strict=False):
        if value == "":
            raise UserError(f"{flag}: the value is empty")
        if value.startswith("--") and value.endswith("="):
            raise UserError(f"{value[:-1]}: the value is empty")
    return args


def flags_in(args: Sequence[str]) -> dict[str, str]:
    """Return a dict from each flag in ``args``, spelled with _, to its value or the argument after it."""
    flags = {}
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            if not equals:
                value = following
            flags[name.replace("-", "_")] = value
    return flags
