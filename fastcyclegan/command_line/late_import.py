"""Import what a command runs, and name a package that is missing. Importing this module imports no other.

So a command can take Ctrl-C, and tell of a missing package in one line, before it imports torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from fastcyclegan.errors import escape_on_streams, print_line
from fastcyclegan.training.signals import nothing_to_save

# The pip names of the packages that the commands import.
PACKAGES = {name: name for name in ("torch", "triton", "numpy", "tyro", "rich", "matplotlib", "pytest")} | {
    "PIL": "pillow"
}


def function(module: str, name: str) -> Callable[[], Any]:
    """Import ``module`` and return its function ``name``.

    If a package is missing, print its name and how to install it, and exit with code 2.
    """
    escape_on_streams()
    try:
        with nothing_to_save():
            return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as missing:
        package, _, _ = str(missing.name).partition(".")
        if package not in PACKAGES:
            raise
        print_line(
            f"error: this command needs the package {package}: python -m pip install {PACKAGES[package]}",
            sys.stderr,
        )
        sys.exit(2)
