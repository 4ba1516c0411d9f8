"""Check that a tag can be released: ``python .github/check_release.py TAG REPOSITORY_URL``.

The version in pyproject.toml, ``fastcyclegan.__version__`` and the newest section of CHANGELOG.md must be
that of the tag, the section must have a date, and pyproject.toml must name the repository. A mistake is
reported as one line, with exit code 1. Needs only Python.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHANGELOG = ".github/CHANGELOG.md"


class ReleaseError(Exception):
    """A reason why the tag must not be released."""


def package_version() -> str:
    """Return the value of ``fastcyclegan.__version__`` without importing the package, which needs torch."""
    for node in ast.parse((ROOT / "fastcyclegan" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise ReleaseError("fastcyclegan/__init__.py does not assign __version__")


def newest_section() -> tuple[str, str]:
    """Return the version and the date of the newest section of the changelog, apart from "Unreleased"."""
    for line in (ROOT / CHANGELOG).read_text().splitlines():
        section = re.match(r"## \[(\d[^\]]*)\] - (.+)$", line)
        if section:
            return section[1], section[2].strip()
    raise ReleaseError(f"{CHANGELOG} has no section of the form ## [1.2.3] - 2030-12-31")


def check(tag: str, repository: str) -> str:
    """Return the version that ``tag`` releases. Raise ReleaseError if it must not be released."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version, source = project["version"], project["urls"]["Source"]
    if tag != f"v{version}":
        raise ReleaseError(
            f"the tag is {tag}, but the version in pyproject.toml is {version}: tag v{version}"
        )
    if package_version() != version:
        raise ReleaseError(
            f"fastcyclegan.__version__ is {package_version()}, but the version in pyproject.toml is {version}"
        )
    newest, date = newest_section()
    if newest != version:
        raise ReleaseError(f"the newest section of {CHANGELOG} is {newest}, but the version is {version}")
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        raise ReleaseError(f"{CHANGELOG}: the section {version} needs the date of the release, got {date!r}")
    if repository.removesuffix("/").removesuffix(".git") != source:
        raise ReleaseError(f"pyproject.toml names the source {source}, but this repository is {repository}")
    return str(version)


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: python .github/check_release.py TAG REPOSITORY_URL", file=sys.stderr)
        return 2
    try:
        print(f"version {check(*sys.argv[1:])} can be released")
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
