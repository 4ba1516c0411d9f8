"""The function that a script runs, and one line where a package that it needs is missing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import _checkout  # noqa: F401

# What pip calls the packages that the scripts import.
PACKAGES = {name: name for name in ("torch", "triton", "numpy", "tyro", "rich", "matplotlib", "pytest")} | {
    "PIL": "pillow"
}


def function(module: str, name: str) -> Callable[[], Any]:
    """Return function ``name`` of ``module``. Where a package is missing, print which and how to get it, and
    end with exit code 2.
    """
    try:
        return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]
    except ModuleNotFoundError as missing:
        package, _, _ = str(missing.name).partition(".")
        if package not in PACKAGES:
            raise
        print(
            f"error: this needs the package {package}: python -m pip install {PACKAGES[package]}",
            file=sys.stderr,
        )
        sys.exit(2)
