"""Run an official checkout's train.py or test.py with fastcyclegan's networks and, for cycle_gan, its
training step.

    python -m fastcyclegan.official [--precision auto|fp32|bf16] [--compile] [--impl auto|triton|reference] \\
        CHECKOUT/train.py ...

CHECKOUT is a checkout of pytorch-CycleGAN-and-pix2pix. Everything after the script is passed to it unchanged.
The script runs as ``python CHECKOUT/train.py ...`` would, in the same folder and with the same files. The
checkout on disk is not modified; not even bytecode is written to it.

Networks and the training step are replaced in memory, and only if the replacement computes the same function
in float64. Every replacement is logged. The checkout's own code is kept for networks of other shapes, for
steps with other losses, for training on several GPUs and for wgangp. It is also kept if any method of the
step is not a known version of the public code. Before every iteration, everything that the step depends on is
checked for changes. If something has changed, the checkout's own step takes over from there, and the reason
is logged.

Training differs from the checkout's own in two ways: images shown during training are computed after the
iteration rather than within it, and on a GPU the step computes in bf16 unless --precision fp32 is given.
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
from fastcyclegan.errors import UserError, escape_on_streams, print_line
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
    """Parse the command line, and return fastcyclegan's options, the script and the script's own arguments.

    Raises UserError for invalid options, and for a script that does not belong to an official checkout.
    """
    description = str(__doc__).split("\n\n")[0]
    parser = _Parser(PROGRAM, description=description, allow_abbrev=False)
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default=RunConfig.precision,
        help="precision of cycle_gan's training step",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile cycle_gan's training step; on a GPU, also capture it in a CUDA graph",
    )
    parser.add_argument(
        "--impl",
        choices=("auto", "cpp", "triton", "reference"),
        default=ModelConfig.impl,
        help="run the networks with fastcyclegan's kernels (triton, or cpp on a CPU) or PyTorch's operators"
        " (reference)",
    )
    parser.add_argument("script", help="CHECKOUT/train.py or CHECKOUT/test.py")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="arguments that are passed on to the script"
    )
    parsed = parser.parse_args(args)
    script = Path(parsed.script)
    _check_checkout(script)
    return Options(parsed.precision, parsed.compile, parsed.impl), script, parsed.arguments


def _check_checkout(script: Path) -> None:
    """Raise UserError unless ``script`` belongs to an official checkout."""
    if not script.is_file():
        raise UserError(f"{script}: no such file; give the train.py or test.py of an official checkout")
    networks = script.resolve().parent / "models" / "networks.py"
    if not networks.is_file():
        raise UserError(f"{script} does not belong to an official checkout: {networks} does not exist")
    if not re.search(r"^def define_G\b", networks.read_text(errors="replace"), re.MULTILINE):
        raise UserError(f"{script} does not belong to an official checkout: {networks} has no define_G")


class Patches(MetaPathFinder):
    """An import hook that patches modules of ``folder`` right after they have been imported.

    ``patches`` maps the name of a module to the function that is called with it.
    """

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
    """Return the import hook that replaces the networks and training step of the checkout in ``folder``."""
    patch_of: dict[str, Patch] = {
        "models.networks": lambda module: replace_networks(module, options.impl, log),
        "models.base_model": lambda module: check_setup(module, options, log),
        "models.cycle_gan_model": lambda module: replace_step(module, options, log),
    }
    return Patches(folder, patch_of)


def run(options: Options, script: Path, arguments: Sequence[str], log: Callable[[str], None]) -> None:
    """Run ``script`` as the main program with ``arguments``, using our networks and training step."""
    folder = script.resolve().parent
    # Set for processes that the script starts, too.
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    sys.argv = [str(script), *arguments]
    # Python puts the script's folder here; with -m it is the current folder.
    sys.path[0] = str(folder)
    sys.meta_path.insert(0, patches(options, folder, log))
    runpy.run_path(str(script), run_name="__main__")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. Exceptions raised by the script itself are not caught."""
    if args is None:
        args = sys.argv[1:]
    escape_on_streams()
    try:
        options, script, arguments = parse(args)
        run(options, script, arguments, lambda text: print_line(f"fastcyclegan: {text}", sys.stdout))
    except UserError as error:
        print_line(f"error: {error}", sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
