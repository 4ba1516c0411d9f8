"""Checks of the texts of all pages: links, flags, the README's length, and commands that run elsewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.pages.page import ROOT, Code, Page, dead_links, pages, read_page, tracked
from tests.pages.tables import ELSEWHERE, place, unmatched
from tests.pages.user import User

PAGES = pages()
# Every Markdown file that is rendered for readers, also those whose commands are not run.
LINKING = [name for name in tracked("*.md") if not name.startswith("tests/official/checkout/")]


@pytest.mark.parametrize("name", LINKING)
def test_links_and_anchors_of(name: str) -> None:
    assert not dead_links(read_page(name))


def test_the_readme_is_short() -> None:
    assert len(read_page("README.md").text.splitlines()) <= 200


def test_all_entries_of_the_tables_are_used() -> None:
    """An entry that matches nothing is left over, or no longer makes a command small."""
    codes = [code for page in PAGES for code in (*page.commands(), *page.examples())]
    assert not unmatched(codes)


def test_commands_run_elsewhere_are_run_there() -> None:
    assert not [problem for page in PAGES for code in page.commands() if (problem := not_run(code))]


def not_run(code: Code, elsewhere: dict[str, str] = ELSEWHERE) -> str | None:
    """Return a message if the place where ``code`` is run according to ``elsewhere`` does not exist."""
    where = place(code.text, elsewhere)
    if where is None or re.match(r"by hand: \w+", where):
        return None
    if where.startswith(".ci/run"):
        text = (ROOT / ".ci" / "run").read_text()
        line = where.removeprefix(".ci/run").removeprefix(": ") or code.text
        return None if line in text else f"{code.where}: .ci/run does not contain {line}"
    file, _, name = where.partition("::")
    return None if name in tests_in(file) else f"{code.where}: there is no test {where}"


def tests_in(file: str) -> set[str]:
    if not (ROOT / file).exists():
        return set()
    nodes = ast.walk(ast.parse((ROOT / file).read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def flags(page: Page) -> Iterator[Code]:
    """Yield the flags in inline code that consists of flags and their values."""
    for code in page.inline_code():
        if code.text.startswith("--"):
            for flag in re.findall(r"(?<!\S)--[\w-]+", code.text):
                yield Code(code.page, code.line, flag)


def test_flags_in_texts_exist(user: User) -> None:
    """A flag that a text describes is an option of a command of the project."""
    commands = [
        *(f"python scripts/{path.name}" for path in sorted((ROOT / "scripts").glob("[a-z]*.py"))),
        *(f"python -m bench.{name}" for name in ("report", "roofline", "loss_curves", "built_in_quality")),
        "pytest bench",
    ]
    known = "".join(user.check("help", f"{command} --help") for command in commands)
    mentioned = [flag for page in PAGES for flag in flags(page)]
    assert len(mentioned) > 40
    assert not [
        f"{flag.where}: {flag.text} is in no --help"
        for flag in mentioned
        if not re.search(rf"{flag.text}(?![\w-])", known)
    ]
