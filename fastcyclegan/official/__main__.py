"""An official checkout's train.py or test.py (pytorch-CycleGAN-and-pix2pix) with our networks, and for
cycle_gan our training step.

    python -m fastcyclegan.official [--precision auto|fp32|bf16] [--compile] [--impl auto|triton|reference] \\
        CHECKOUT/train.py ...

What follows the script is the checkout's, untouched. The script runs as ``python CHECKOUT/train.py ...``
would, in the same folder, with the same files; the checkout on disk is not changed, not even by byte code.
What is replaced is replaced in memory, where it was found to be the same function in float64, and said:
networks of other shapes, steps with other losses, several GPUs and wgangp stay the checkout's own. So does a
step with a method that is no known version of the public code. What the step depends on is compared before
every iteration: from a change on, the checkout's own step goes on, and that is said.

Different from the checkout by itself: images shown during training are made after the iteration, not
within; on a GPU the step computes in bf16 unless --precision fp32 is given.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from fastcyclegan.config import ModelConfig, RunConfig
from fastcyclegan.errors import UserError
from fastcyclegan.official.patch_model import Options, check_setup, replace_step
from fastcyclegan.official.patch_networks import replace_networks

Patch = Callable[[ModuleType], None]
PROGRAM = "python -m fastcyclegan.official"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{message} (usage: {PROGRAM} [--precision P] [--compile] [--impl I] CHECKOUT/train.py ...)"
        )


def parse(args: Sequence[str]) -> tuple[Options, Path, list[str]]:
    """Return our options, the script, and what is the script's. Raises UserError for what cannot be
    served."""
    description = str(__doc__).split("\n\n")[0]
    parser = _Parser(PROGRAM, description=description, allow_abbrev=False)
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default=RunConfig.precision,
        help="of the step of cycle_gan",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the step of cycle_gan; on a GPU capture it in a CUDA graph",
    )
    parser.add_argument(
        "--impl",
        choices=("auto", "triton", "reference"),
        default=ModelConfig.impl,
        help="what computes the networks",
    )
    parser.add_argument("script", help="CHECKOUT/train.py or CHECKOUT/test.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own")
    given = parser.parse_args(args)
    script = Path(given.script)
    _check_checkout(script)
    return Options(given.precision, given.compile, given.impl), script, given.arguments


def _check_checkout(script: Path) -> None:
    """Raise UserError where ``script`` is not one of an official checkout."""
    if not script.is_file():
        raise UserError(
            f"{script}: no such file; what is needed is the train.py or test.py of an official checkout"
        )
    networks = script.resolve().parent / "models" / "networks.py"
    if not networks.is_file():
        raise UserError(f"{script} is no script of an official checkout: {networks} does not exist")
    if not re.search(r"^def define_G\b", networks.read_text(errors="replace"), re.MULTILINE):
        raise UserError(f"{script} is no script of an official checkout: {networks} has no define_G")


class Patches(MetaPathFinder):
    """Calls a function for a module of ``folder`` once it has been imported, by its name."""

    def __init__(self, folder: Path, patches: dict[str, Patch]) -> None:
        self.folder, self.patches = folder, patches

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.patches:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None or spec.origin is None:
            return None
        if not Path(spec.origin).is_relative_to(self.folder):
            return None
        loader: Any = spec.loader
        loader.exec_module = functools.partial(_execute, loader.exec_module, self.patches[name])
        return spec


def _execute(execute: Patch, patch: Patch, module: ModuleType) -> None:
    execute(module)
    patch(module)


def patches(options: Options, folder: Path, log: Callable[[str], None]) -> Patches:
    """Return what puts ours in the place of what the checkout in ``folder`` imports."""
    of_module: dict[str, Patch] = {
        "models.networks": lambda module: replace_networks(module, options.impl, log),
        "models.base_model": lambda module: check_setup(module, options, log),
        "models.cycle_gan_model": lambda module: replace_step(module, options, log),
    }
    return Patches(folder, of_module)


def run(options: Options, script: Path, arguments: Sequence[str], log: Callable[[str], None]) -> None:
    """Run ``script`` as the main program with ``arguments``, with what is ours in the place of what is its
    own.
    """
    folder = script.resolve().parent
    # The same for processes that the script starts.
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    sys.argv = [str(script), *arguments]
    # Python puts the script's folder there; with -m it was the current one.
    sys.path[0] = str(folder)
    sys.meta_path.insert(0, patches(options, folder, log))
    runpy.run_path(str(script), run_name="__main__")


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns its exit code. Errors of the script itself stay its own."""
    if args is None:
        args = sys.argv[1:]
    try:
        options, script, arguments = parse(args)
        run(options, script, arguments, lambda text: print(f"fastcyclegan: {text}", flush=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
