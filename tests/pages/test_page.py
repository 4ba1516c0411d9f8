"""The parser of the pages, and proof that each check of the pages can fail."""

from __future__ import annotations

import pytest

from tests.pages.page import Code, Page, PageError, commands_of, dead_links
from tests.pages.tables import place, reduced, unmatched
from tests.pages.test_texts import flags, not_run
from tests.pages.user import User

TEXT = """# A `page`, with (marks)

Run `python -m a PLACE/b.py`, not `python` or `a.py`,
or `.ci/run` and `fastcyclegan-train`.

```sh
one --a \\
  --b  # why
two && three  # not   four

four "# five"
```

```python
x = 1
```

## The same

| a | b |
|---|---|
| `pytest x` | [link](#the-same-1) |

## The same
"""


def test_commands_with_their_lines() -> None:
    """Blocks come first, then inline code. A name alone is no command, except of our own programs."""
    assert [(code.line, code.text) for code in Page("a.md", TEXT).commands()] == [
        (7, "one --a --b"),
        (9, "two && three"),
        (11, 'four "# five"'),
        (3, "python -m a PLACE/b.py"),
        (4, ".ci/run"),
        (4, "fastcyclegan-train"),
        (22, "pytest x"),
    ]


def test_examples_with_their_lines() -> None:
    assert Page("a.md", TEXT).examples() == [Code("a.md", 15, "x = 1\n")]


def test_anchors_are_those_of_github() -> None:
    assert Page("a.md", TEXT).anchors() == {"a-page-with-marks", "the-same", "the-same-1"}


def test_continued_lines_count_as_one_command() -> None:
    assert list(commands_of("a \\\n  b \\\n  c\n# comment\nd\n", 5)) == [(5, "a b c"), (9, "d")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n```ruby\nx\n```\n", "a.md:2: the language is 'ruby', not one of sh, python"),
        ("text\n\n    x = 1\n    python x.py\n", "a.md:4: a command in an indented block"),
    ],
)
def test_blocks_that_would_not_be_run_are_refused(text: str, message: str) -> None:
    with pytest.raises(PageError, match=message):
        Page("a.md", text).commands()


def test_dead_links_are_found() -> None:
    text = """# Title
[good](scripts/README.md#batches) [good](#title) [good](https://pytorch.org)
[file](scripts/NONE.md)

![image](none.png) [anchor](#none)
[other](scripts/README.md#none) [root](/README.md) [old](http://pytorch.org)
"""
    assert dead_links(Page("a.md", text)) == [
        "a.md:3: no such file: scripts/NONE.md",
        "a.md:5: no such file: none.png",
        "a.md:5: no such heading: #none",
        "a.md:6: no such heading: scripts/README.md#none",
        "a.md:6: no such file: /README.md",
        "a.md:6: neither a file nor https: http://pytorch.org",
    ]


def test_links_are_relative_to_their_page() -> None:
    assert not dead_links(Page("scripts/a.md", "[a](train.py) [b](../bench/README.md)"))
    assert dead_links(Page("scripts/a.md", "[a](scripts/train.py)"))


def test_entries_that_match_nothing_are_found() -> None:
    left_over = unmatched([Code("a.md", 1, "python -m fastcyclegan.official")])
    assert "python -m fastcyclegan.official" not in left_over
    assert {"CHECKOUT", "train.py --compile", "python -m pytest -m slow*"} <= {*left_over}


def test_a_place_that_does_not_exist_is_found() -> None:
    code = Code("a.md", 3, "python x.py --y")
    for where in (
        "tests/none.py::test_x",
        "tests/pages/test_page.py::test_none",
        ".ci/run",
        ".ci/run: partly",
    ):
        assert str(not_run(code, {"python x.py*": where})).startswith("a.md:3: ")
    here = "tests/pages/test_page.py::test_a_place_that_does_not_exist_is_found"
    assert not_run(code, {"python x.py*": here}) is None
    assert place("python y.py", {"python x.py*": here}) is None


def test_placeholders_have_values() -> None:
    assert reduced("python CHECKOUT/a.py CHECKOUTS") == "python checkout/a.py CHECKOUTS"
    assert reduced("fastcyclegan-train") == "fastcyclegan-train --help"


def test_flags_are_read_from_inline_code_that_begins_with_one() -> None:
    page = Page("a.md", "`--a` `--b_c 1 --d-e`\n`pip --f` `a--g`")
    assert [(flag.line, flag.text) for flag in flags(page)] == [(1, "--a"), (1, "--b_c"), (1, "--d-e")]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program --x", "a.md:1: exit code 127, not 0(?s:.*)no-such-program: command not found"),
        ("python none.py | cat", "a.md:1: exit code 1, not 0; a traceback"),
        ("python -c 'import sys; sys.exit(3)'", "a.md:1: exit code 3, not 0"),
        ('python -c \'open("../outside", "w")\'', "a.md:1: files outside its folder: open .*/outside"),
        ("python -c 'import os; os.abort()'", "a.md:1: exit code 134, not 0"),
    ],
    ids=["unknown", "traceback", "exit code", "outside", "crash"],
)
def test_a_failing_command_is_reported(command: str, message: str, user: User) -> None:
    with pytest.raises(PageError, match=message):
        user.check("a.md:1", command)


def test_a_command_that_does_not_end_is_reported(user: User) -> None:
    outcome = user.run("python -c 'import time; time.sleep(60)'", seconds=1)
    assert outcome.code != 0
    assert "not finished after 1 seconds" in outcome.output
