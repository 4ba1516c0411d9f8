"""The table at the start of a run."""

from __future__ import annotations

import dataclasses

from tests.engine.kernel_engine import engine


def test_the_table_at_the_start_says_that_kernels_are_compiled_ahead() -> None:
    one = engine()
    assert "kernels" not in one.describe()
    one.choices = dataclasses.replace(one.choices, compile_ahead=True)
    assert one.describe()["kernels"] == "compiled before the first iteration, where Triton's cache lacks them"
