"""The pages of the project: their commands, Python examples, links and headings, each with its line.

A page is a Markdown file that git tracks, without those in NOT_PAGES. Commands are the lines of ``sh`` blocks
and of blocks without a language, and inline code that begins with one of PROGRAMS. Python examples are
``python`` blocks. Indented blocks are formulas.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]

# Files in Markdown that are not pages, and why. Paths that end in a slash are folders.
NOT_PAGES = {
    ".github/CHANGELOG.md": "tells what was, with commands of its time",
    ".github/ISSUE_TEMPLATE/": "forms",
    ".github/PULL_REQUEST_TEMPLATE.md": "a form",
    "bench/results/notes.md": "tells what was measured, with commands of its time",
    "tests/official/checkout/": "stands for another project",
}
# Regular expressions.
PROGRAMS = (
    *("python", "pytest", "pip", "pipx", "docker", "tensorboard", "pre-commit", "git", "bash", "timeout"),
    r"\.ci/run",
    "fastcyclegan-[a-z-]+",
)
# The languages of blocks. A block without one holds commands.
LANGUAGES = ("sh", "python", "", "text", "bibtex", "toml", "yaml")


class PageError(Exception):
    """A fault of a page. The message begins with its file and line."""


@dataclass(frozen=True)
class Code:
    """A command or a Python example of ``page``, which begins in ``line``."""

    page: str
    line: int
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A page: its path from the root of the project, and its text."""

    name: str
    text: str

    def tokens(self) -> list[Token]:
        return MarkdownIt("commonmark").enable("table").parse(self.text)

    def commands(self) -> list[Code]:
        """Return all commands in the order of the page."""
        return [Code(self.name, line, text) for line, text in self._commands()]

    def _commands(self) -> Iterator[tuple[int, str]]:
        for token in self.tokens():
            if token.type == "fence":
                if token.info not in LANGUAGES:
                    known = ", ".join(filter(None, LANGUAGES))
                    raise PageError(
                        f"{self.name}:{first_line(token)}: the language is {token.info!r}, not one of {known}"
                    )
                if token.info in ("sh", ""):
                    yield from commands_of(token.content, first_line(token) + 1)
            elif token.type == "code_block":
                for line, text in enumerate(token.content.splitlines(), first_line(token)):
                    if begins_with_a_program(text):
                        raise PageError(f"{self.name}:{line}: a command in an indented block: use ```sh")
        # Inline code comes after the blocks, because it often refers to what they made.
        for code in self.inline_code():
            # A lone ``python`` or ``pip`` names a program. A lone ``.ci/run`` is a command.
            if begins_with_a_program(code.text) and re.search(r" |^\.ci|^fastcyclegan-", code.text):
                yield code.line, code.text

    def inline_code(self) -> list[Code]:
        return [
            Code(self.name, line, child.content)
            for line, child in inline(self.tokens())
            if child.type == "code_inline"
        ]

    def examples(self) -> list[Code]:
        """Return all Python examples in the order of the page."""
        return [
            Code(self.name, first_line(token) + 1, token.content)
            for token in self.tokens()
            if token.type == "fence" and token.info == "python"
        ]

    def anchors(self) -> set[str]:
        """Return the anchors that GitHub gives to the headings of this page."""
        tokens = self.tokens()
        seen: Counter[str] = Counter()
        anchors = set()
        for opening, token in pairwise(tokens):
            if opening.type == "heading_open":
                title = "".join(child.content for child in token.children or ())
                anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
                anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
                seen[anchor] += 1
        return anchors

    def links(self) -> list[Code]:
        """Return the targets of all links and images."""
        return [
            Code(self.name, line, str(child.attrs["href" if child.type == "link_open" else "src"]))
            for line, child in inline(self.tokens())
            if child.type in ("link_open", "image")
        ]


def begins_with_a_program(text: str) -> bool:
    return re.match(rf"(?:{'|'.join(PROGRAMS)})(?: |$)", text) is not None


def first_line(token: Token) -> int:
    assert token.map is not None
    return token.map[0] + 1


def inline(tokens: list[Token]) -> Iterator[tuple[int, Token]]:
    """Yield everything within paragraphs, headings and table cells, with its line."""
    for token in tokens:
        if token.type == "inline":
            line = first_line(token)
            for child in token.children or ():
                yield line, child
                line += child.type in ("softbreak", "hardbreak")


def commands_of(block: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield the commands of a block that begins in ``line``, without comments and with joined lines."""
    start, text = line, ""
    for number, part in enumerate(block.splitlines(), line):
        start = start if text else number
        text += re.sub(r"(^|\s+)# .*", "", part)
        if text.endswith("\\"):
            text = text.removesuffix("\\").rstrip() + " "
            continue
        if text.strip():
            yield start, re.sub(r" {2,}", " ", text.strip())
        text = ""


def tracked(*patterns: str) -> list[str]:
    """Return the paths of the files that git tracks, from the root of the project.

    In a copy of the project without its history, these are all files that .gitignore does not name.
    """
    listing = ["ls-files", "-z", "--", *patterns]
    process = git(*listing)
    if process.returncode != 0:
        with TemporaryDirectory() as folder:
            git("init", "--quiet", "--bare", folder).check_returncode()
            listing[1:1] = ["--others", "--exclude-standard"]
            process = git(f"--git-dir={folder}", f"--work-tree={ROOT}", *listing)
            process.check_returncode()
    return sorted({name for name in process.stdout.split("\0") if name and (ROOT / name).exists()})


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)


def read_page(name: str) -> Page:
    return Page(name, (ROOT / name).read_text())


def pages() -> list[Page]:
    """Return all pages, README.md first."""
    names = sorted(tracked("*.md"), key=lambda name: (name.count("/"), name))
    return [read_page(name) for name in names if not name.startswith(tuple(NOT_PAGES))]


def dead_links(page: Page) -> list[str]:
    """Return a message for each link or image of ``page`` whose file or heading does not exist."""
    return [
        f"{link.where}: {problem}: {link.text}"
        for link in page.links()
        if (problem := _what_is_missing(page, link.text))
    ]


def _what_is_missing(page: Page, link: str) -> str:
    parts = urlsplit(link)
    if parts.scheme:
        return "" if parts.scheme == "https" else "neither a file nor https"
    target = Path(ROOT, page.name).parent / unquote(parts.path) if parts.path else Path(ROOT, page.name)
    if parts.path.startswith("/") or (parts.path and not target.exists()):
        return "no such file"
    if parts.fragment:
        # A page is read from memory, so that tests can check pages that are not on disk.
        there = read_page(str(target.resolve().relative_to(ROOT))) if parts.path else page
        if unquote(parts.fragment) not in there.anchors():
            return "no such heading"
    return ""
