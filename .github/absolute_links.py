"""Make the links of README.md absolute: ``python .github/absolute_links.py TAG``.

README.md is also the page on PyPI, where relative links lead nowhere and headings have no anchors. This
script changes README.md in place before a release is built: links lead to the files of TAG on GitHub, and
images are loaded from there. A link to a file that does not exist is reported as one line, with exit code 1.
Needs only Python.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
GITHUB = "https://github.com/"
RAW = "https://raw.githubusercontent.com/"
# Code comes first, so that what looks like a link inside it is skipped.
PATTERN = re.compile(
    r"(?P<code>^```.*?^```[^\S\n]*$|`[^`\n]+`)"
    # [text](target), ![text](target), and the outer link of [![text](image)](target).
    r"|(?P<start>(?P<image>!?)(?:\[(?:[^\[\]]|`[^`\n]*`)*\]|(?<=\))\])\()(?P<target>[^()\s]+)(?=[\s)])"
    r"|(?P<html>(?:src|srcset|href)=\")(?P<url>[^\"]+)(?=\")"
    r"|(?P<definition>^\[[^\]\n]+\]:[ \t]+)(?P<reference>\S+)",
    re.MULTILINE | re.DOTALL,
)


class LinkError(Exception):
    """A link that cannot be made absolute."""


def absolute(target: str, is_image: bool, repository: str, tag: str) -> str:
    """Return the absolute form of a link in README.md of ``repository`` ("OWNER/NAME")."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", target):
        return target
    path, hash_sign, anchor = target.partition("#")
    if not path:
        path = "README.md"
    file = ROOT / unquote(path)
    if not file.exists():
        raise LinkError(f"README.md links to {path}, which does not exist")
    if is_image:
        return f"{RAW}{repository}/{tag}/{path}"
    kind = "tree" if file.is_dir() else "blob"
    return f"{GITHUB}{repository}/{kind}/{tag}/{path}{hash_sign}{anchor}"


def rewritten(text: str, repository: str, tag: str) -> str:
    """Return the Markdown ``text`` with absolute links, apart from those in code."""

    def replace(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        if match["start"]:
            return match["start"] + absolute(match["target"], bool(match["image"]), repository, tag)
        if match["html"]:
            return match["html"] + absolute(
                match["url"], not match["html"].startswith("href"), repository, tag
            )
        return match["definition"] + absolute(match["reference"], False, repository, tag)

    return PATTERN.sub(replace, text)


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python .github/absolute_links.py TAG", file=sys.stderr)
        return 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Source"].removeprefix(GITHUB)
    readme = ROOT / "README.md"
    try:
        readme.write_text(rewritten(readme.read_text(), repository, sys.argv[1]))
    except LinkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
