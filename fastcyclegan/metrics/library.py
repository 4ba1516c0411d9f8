"""Import torchmetrics when it is needed: it is an extra, and takes a second or two to import."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from fastcyclegan.errors import UserError


def from_torchmetrics(module: str, name: str) -> Callable[..., Any]:
    """Return the function ``name`` of ``torchmetrics.module``.

    Raises UserError if torchmetrics is not installed.
    """
    require_torchmetrics()
    found: Callable[..., Any] = getattr(importlib.import_module(f"torchmetrics.{module}"), name)
    return found


def require_torchmetrics() -> None:
    """Raise UserError if torchmetrics is not installed."""
    if importlib.util.find_spec("torchmetrics") is None:
        raise UserError(
            "metrics need the package torchmetrics: python -m pip install torchmetrics (the extra metrics)"
        )
