"""Import the function that a script runs, and report a missing package in one line."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable
from typing import Any

import _checkout  # noqa: F401

# The pip names of the packages that the scripts import.
PACKAGES = {name: name for name in ("torch", "triton", "numpy", "tyro", "rich", "matplotlib", "pytest")} | {
    "PIL": "pillow"
}


def function(module: str, name: str) -> Callable[[], Any]:
    """Import ``module`` and return its function ``name``.

    If a package is missing, print its name and how to install it, and exit with code 2.
    """
    # Meanwhile, Ctrl-C ends the process at once: an exception that appears in the middle of an import can be
    # lost, or abort the process.
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except ModuleNotFoundError as missing:
        package, _, _ = str(missing.name).partition(".")
        if package not in PACKAGES:
            raise
        print(
            f"error: this script needs the package {package}: python -m pip install {PACKAGES[package]}",
            file=sys.stderr,
        )
        sys.exit(2)
    finally:
        signal.signal(signal.SIGINT, handler)
