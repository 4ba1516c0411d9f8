"""How a weight gradient's pixels are cut into steps."""

from __future__ import annotations

from fastcyclegan.kernels.zero_conv_launch import line_of


def test_lines_of_a_step() -> None:
    """As few steps as can be for the sides that networks have, and never more pixels side by side than a step
    has.
    """
    assert [line_of((side, side), 64) for side in (128, 64, 32)] == [64, 64, 32]
    assert line_of((31, 31), 64) == 32
    assert line_of((1, 1000), 64) == 64
    assert line_of((1000, 1), 64) == 1
