"""The command that joins two folders of images into files of pairs, side by side.

It takes the flags of the official combine_A_and_B.py, too. Importing this module and printing the help import
no other package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fastcyclegan.command_line.exit_codes import run, run_to_the_end
from fastcyclegan.command_line.late_import import function
from fastcyclegan.errors import UserError

DESCRIPTION = """\
Join the images of two folders into PNG files that hold a pair side by side, A on the left, as training
with --dataset_mode aligned reads them. Images with the same name are a pair, whatever their suffix; the name
of one of A can also end in _A, and that of one of B in _B. If the images are in folders named train, val or
test, these are kept in OUT; otherwise, the files are written to OUT/train. Nothing is written if an image has
no partner, cannot be read or has another size than its partner.
"""
_SWITCHES = {
    "use_AB": "use only images whose names end in _A (in A) and _B (in B); A and B can be the same folder",
    "skip_unpaired": "list images without partner and leave them out, instead of stopping",
    "skip_bad_images": (
        "list pairs whose images cannot be read or differ in size, and skip them, instead of stopping"
    ),
    "overwrite": "write to a folder that is not empty: replace files of the same names, keep the others",
    "allow_decompression_bombs": (
        "read images of any size, as far as the memory allows; only for files that you trust"
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise UserError, where argparse would print the usage as well."""
        raise UserError(message)


def _folder(text: str) -> Path:
    if not text:  # it would mean the current folder
        raise argparse.ArgumentTypeError("the value is empty")
    return Path(text)


def _count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return count


def _parser() -> _Parser:
    parser = _Parser(prog="make_aligned.py", description=DESCRIPTION, allow_abbrev=False)
    folders = {
        "A": "folder of images of domain A",
        "B": "folder of images of domain B",
        "OUT": "dataset folder in which to write the pairs",
    }
    for name, text in folders.items():
        parser.add_argument(name, nargs="?", type=_folder, help=text)
    for name, flag in (("A", "--fold_A"), ("B", "--fold_B"), ("OUT", "--fold_AB")):
        parser.add_argument(flag, type=_folder, metavar="FOLDER", help=f"the same as {name}")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="folder of OUT to write to, if the images are not in such folders already (default: train)",
    )
    parser.add_argument(
        "--num_imgs",
        type=_count,
        metavar="N",
        help="join the first N pairs of each split, in order of name",
    )
    for name, text in _SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_argument("--no_multiprocessing", action="store_true", help="accepted without effect")
    return parser


def _arguments(args: Sequence[str]) -> list[str]:
    """Return ``args`` with the flags spelled with _."""
    spelled = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag.startswith("--"):
            flag = f"--{flag[2:].replace('-', '_')}"
        spelled.append(f"{flag}{equals}{value}")
    return spelled


def _settings(args: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of the Python function. Raises UserError for a mistake in ``args``."""
    parsed, unknown = _parser().parse_known_args(_arguments(args))
    if unknown:
        what = "flag" if unknown[0].startswith("-") else "argument"
        raise UserError(f"unknown {what} {unknown[0]}; --help lists all flags")
    settings = vars(parsed)
    folders = [settings.pop(name) for name in ("A", "B", "OUT")]
    official = [settings.pop(name) for name in ("fold_A", "fold_B", "fold_AB")]
    if not any(folders):
        folders, official = official, folders
    if not all(folders) or any(official):
        raise UserError("give three folders: A B OUT, or --fold_A A --fold_B B --fold_AB OUT")
    return dict(zip(("A", "B", "output"), folders, strict=True)) | settings


def _make_aligned(join: Callable[..., object], settings: dict[str, Any]) -> int:
    from fastcyclegan.console import Console  # of another package, so not before the help

    console = Console()
    if settings.pop("no_multiprocessing"):
        console.log("--no_multiprocessing: no effect here, because threads join the images")
    join(**settings, console=console)
    return 2 if console.failed else 0


def _main(args: Sequence[str]) -> int:
    settings = _settings(args)
    join = function("fastcyclegan.data.make_aligned", "make_aligned")
    return run_to_the_end(lambda: _make_aligned(join, settings))


def make_aligned(args: Sequence[str] | None = None) -> int:
    """Run ``make_aligned.py`` and return its exit code."""
    return run(lambda: _main(sys.argv[1:] if args is None else args))
