"""The engine's rows in the table at the start of a run."""

from __future__ import annotations

import dataclasses

from tests.engine.kernel_engine import engine


def test_the_table_reports_kernels_compiled_ahead() -> None:
    kernel_engine = engine()
    assert "kernels" not in kernel_engine.describe()
    kernel_engine.choices = dataclasses.replace(kernel_engine.choices, compile_ahead=True)
    assert (
        kernel_engine.describe()["kernels"]
        == "compiled before the first iteration, if missing from Triton's cache"
    )
