"""Tests of the console: plain lines without a terminal, and text that looks like markup is unchanged."""

from __future__ import annotations

import pytest

from fastcyclegan.console import Console


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        console.log("[bold]/a/very/long/path" + "x" * 200)
        console.table("title", {"a": 1, "long name": "[x]"})
        console.progress(1, 2, "half [way]")
    assert capsys.readouterr().out.splitlines() == [
        "[bold]/a/very/long/path" + "x" * 200,
        "title",
        "  a          1",
        "  long name  [x]",
        "half [way]",
    ]
    assert not console.is_terminal


def test_live_line_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console()
    assert console.is_terminal
    with console:
        console.progress(1, 4, "iteration [1]")
        console.log("a line above")
    output = capsys.readouterr().out
    assert "25%" in output
    assert "iteration [1]" in output
    assert "a line above" in output
