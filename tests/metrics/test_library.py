"""torchmetrics is imported when it is needed, and named if it is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastcyclegan.errors import UserError
from fastcyclegan.metrics.library import from_torchmetrics, require_torchmetrics


def test_functions_are_imported() -> None:
    pytest.importorskip("torchmetrics")
    require_torchmetrics()
    assert from_torchmetrics("functional.regression", "mean_squared_error").__name__ == "mean_squared_error"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = (
        r"^metrics need the package torchmetrics: python -m pip install torchmetrics \(the extra metrics\)$"
    )
    with pytest.raises(UserError, match=message):
        require_torchmetrics()
    with pytest.raises(UserError, match=message):
        from_torchmetrics("functional.regression", "mean_squared_error")


def test_metrics_do_not_import_it_before_they_need_it() -> None:
    code = "import sys, fastcyclegan.inference.evaluate; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
