"""Tests of the console: plain lines without a terminal, and text that looks like markup is unchanged."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len

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


def test_text_from_files_is_shown_unchanged_or_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        console.log("bad image :smile:\x1b[2J\n.png")
        console.table("title\n", {"a\n": "b\r"})
        console.progress(1, 2, "half\n")
    assert capsys.readouterr().out.splitlines() == [
        r"bad image :smile:\x1b[2J\n.png",
        r"title\n",
        r"  a\n  b\r",
        r"half\n",
    ]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_terminal_that_has_few_characters(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
    console = Console()
    with console:
        console.log("写 é")
        console.progress(1, 4, "写" * 100)
    text = written.getvalue().decode("ascii")
    assert "\\u5199 \\xe9" in text
    assert "\\u5199\\u5199" in text


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


@pytest.mark.parametrize("text", ["x" * 300, "写" * 300, "e\u0301" * 300])
def test_the_live_line_fits_into_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """Some characters are two cells wide, and some have no width."""
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "61")):
        monkeypatch.setenv(name, value)
    with Console() as console:
        console.progress(1, 4, text)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    lines = [line for line in re.split(r"[\r\n]+", shown) if line]
    assert lines
    for line in lines:
        assert 58 <= cell_len(line.rstrip()) <= 61
        assert line.rstrip().endswith("…")
