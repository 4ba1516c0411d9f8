"""Run the Python examples of each page: in order, in one folder, at smaller sizes."""

from __future__ import annotations

import json

import pytest

from tests.pages.page import Code, PageError, pages
from tests.pages.tables import PRINTED, RESULTS
from tests.pages.user import User, examples_program

PAGES = {page.name: page for page in pages() if page.examples()}


@pytest.mark.parametrize("name", PAGES)
def test_examples_of(name: str, user: User) -> None:
    """The examples run without an error, make what RESULTS lists, and print the line of PRINTED."""
    expected = RESULTS.get(name, {})
    (user.folder / "examples.py").write_text(examples_program(PAGES[name].examples(), list(expected)))
    output = user.check(name, "python examples.py")
    assert json.loads((user.folder / "results.json").read_text()) == expected
    assert PRINTED.get(name, "") in output


def test_the_command_line_reads_what_the_examples_save(user: User) -> None:
    """As fastcyclegan/README.md states, the commands translate with a saved model and resume it."""
    (user.folder / "examples.py").write_text(examples_program(PAGES["fastcyclegan/README.md"].examples(), []))
    user.check("examples", "python examples.py")
    user.check("translate", "python scripts/translate.py --weights kept --input holiday --output painted")
    resume = "python scripts/train.py --continue_train --checkpoints_dir . --name kept"
    output = user.check("resume", f"{resume} --n_epochs_decay 1")
    assert "resuming kept after iteration 3" in output
    assert "done: iteration 4 of 4" in output


def test_a_failing_example_is_shown_with_its_page_and_line(user: User) -> None:
    page = next(iter(PAGES.values()))
    line = page.examples()[0].line
    broken = Code(page.name, line, "x = 1\nassert x == 2\n")
    (user.folder / "examples.py").write_text(examples_program([broken], []))
    with pytest.raises(PageError, match=rf'(?s)File "{page.name}", line {line + 1}.*assert x == 2'):
        user.check(page.name, "python examples.py")


def test_results_are_expected_only_of_pages_with_examples() -> None:
    assert {*RESULTS, *PRINTED} <= PAGES.keys()
