"""The output of the GPU suite stays within its length limit, and the most important lines come first."""

from __future__ import annotations

from typing import Any

import pytest

from bench.gpu_outcome import Failure, Outcome
from bench.gpu_summary import MAX_OUTPUT, MAX_SUMMARY, Printer, summary
from tests.bench.parts import ABOUT


def test_different_errors_come_before_repeated_ones() -> None:
    texts = [
        "E   AssertionError: y: relative error 2.5e-01",
        "E   AssertionError: y: relative error 7.5e-03",
        "E   TypeError: no",
        "E   KeyError: 3",
    ]
    failures = [Failure(f"t::{n}", text) for n, text in enumerate(texts)]
    lines = summary(ABOUT, [Outcome("a", failures=failures)], 1, 9, [])
    assert [line for line in lines if line.startswith("FAILED")] == [f"FAILED t::{n}" for n in (0, 2, 3, 1)]
    compiler = Failure("t::x", "E   CompilationError: at 1:0:\nE   def _k(x):\nE   ^\nE   too many registers")
    text = "\n".join(summary(ABOUT, [Outcome("a", failures=[compiler])], 1, 9, []))
    assert "CompilationError: at 1:0:" in text
    assert "too many registers" in text


def test_a_summary_stays_within_its_limit() -> None:
    """A summary stays within its limit however many tests fail.

    The first failure of each part comes before the second of any part, and the number of further failures is
    reported.
    """
    arguments = ["bfloat16[1, 256, 64, 64]" * 9] * 12
    launch: dict[str, Any] = {
        "kernel": "_k",
        "grid": 7,
        "arguments": arguments,
        "configuration": {"BLOCK_M": 128},
    }
    text, again = "E  " + "far off " * 99, "alone: " + "x" * 999

    def failures(part: int) -> list[Failure]:
        return [
            Failure(f"tests/kernels/test_{part}.py::test_y[{n}]", text, [launch] * 12, again)
            for n in range(50)
        ]

    outcomes = [
        Outcome(f"part {n}", "", 9, {"passed": 1, "failed": 50}, failures(n), ["a figure " * 30] * 99)
        for n in range(12)
    ]
    outcomes += [Outcome(f"good {n}", "", 9, {"passed": 1}, [], ["a figure " * 30] * 99) for n in range(3)]
    lines = summary(ABOUT, outcomes, 15, 99, ["file" * 99] * 9)
    assert len("\n".join(lines)) < 8000
    reported = [line for line in lines if line.startswith("FAILED")]
    assert len(reported) >= 5
    assert any("more failures are in the files" in line for line in lines)
    assert any("last launch: _k grid 7" in line for line in lines)
    good = summary(ABOUT, outcomes[12:], 3, 99, [])
    assert "all 3 parts passed" in good[0]
    assert any(line.startswith("a figure") for line in good)
    assert len("\n".join(good)) < 8000


def test_all_output_stays_within_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer()
    for _ in range(1000):
        printer.line("x" * 400)
    printer.summary(["y" * (MAX_SUMMARY - 1)])
    assert MAX_SUMMARY < len(capsys.readouterr().out) <= MAX_OUTPUT < 20_000
