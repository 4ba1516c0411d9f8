"""Text for people: what a terminal would act on is escaped, and what it cannot show."""

from __future__ import annotations

import io
import os

import pytest

from fastcyclegan.errors import print_line, printable, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 写真, é, 😀", "plain text, 写真, é, 😀"),
        ("no-break\N{NO-BREAK SPACE}space", "no-break\N{NO-BREAK SPACE}space"),
        ("می\u200cشود, 👩\u200d🔬", "می\u200cشود, 👩\u200d🔬"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x1b[2J\x07\t\x00\x7f", r"\x1b[2J\x07\t\x00\x7f"),
        ("\x9b31m\x85", r"\u009b31m\u0085"),
        ("\u2028\u2029\u202egnp.exe\u2066\ufeff\xad", r"\u2028\u2029\u202egnp.exe\u2066\ufeff\u00ad"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("\ud83d", r"\ud83d"),
        ("\\n stays", "\\n stays"),
        ("", ""),
    ],
)
def test_what_acts_on_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a" * 10, "a" * 10),
        ("a" * 11, "a" * 7 + "..."),
        ("a\n" * 3, r"a\na\na\n"),
        ("\n" * 6, "\\n\\n\\n\\..."),
    ],
)
def test_a_text_from_a_file_is_cut(text: str, shown: str) -> None:
    assert shortened(text, 10) == shown


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "é 写 \\n"), ("latin-1", "é \\u5199 \\n"), ("ascii", "\\xe9 \\u5199 \\n"), (None, "é 写 \\n")],
)
def test_a_line_is_printed_to_any_stream(encoding: str | None, shown: str) -> None:
    if encoding is None:
        stream: io.TextIOBase = io.StringIO()
        print_line("é 写 \n", stream)  # type: ignore[arg-type]
        assert stream.getvalue() == f"{shown}\n"  # type: ignore[attr-defined]
        return
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding)
    print_line("é 写 \n", terminal)
    assert written.getvalue().decode(encoding) == f"{shown}\n"
