"""Run the commands of each page as a reader would: in order, in one folder, at smaller sizes."""

from __future__ import annotations

import pytest

from tests.pages.page import pages
from tests.pages.tables import EXIT_CODES, place
from tests.pages.user import User

# What the reader of a page has done before.
BEFORE = {
    # On a GPU, the commands before it write this file.
    "bench/results/README.md": (
        "mkdir -p opt/xc/fastcyclegan/tuned; echo {} > opt/xc/fastcyclegan/tuned/GPU.json"
    ),
}
PAGES = {page.name: page for page in pages() if any(place(code.text) is None for code in page.commands())}


@pytest.mark.parametrize("name", PAGES)
def test_commands_of(name: str, user: User) -> None:
    """Every command has the expected exit code, prints no traceback, and writes only into its folder."""
    if name in BEFORE:
        user.check(f"before {name}", BEFORE[name])
    done = set()
    for code in PAGES[name].commands():
        if place(code.text) is None and code.text not in done:
            expected, _ = EXIT_CODES.get(code.text, (0, ""))
            user.check(f"{code.where}: {code.text}", code.text, expected)
            done.add(code.text)
