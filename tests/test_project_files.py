"""Tests of the files around the code: workflows, forms, releases, CONTRIBUTING.md, pre-commit, Dockerfile."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

import fastcyclegan
from fastcyclegan import cli
from tests.pages.page import Page
from tests.test_wheel import copy_of_tree

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
VERSION, SOURCE = PROJECT["version"], PROJECT["urls"]["Source"]


def load_yaml(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def script(name: str) -> ModuleType:
    """Import a Python file of .github, which is not a package."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, GITHUB / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


# --- Workflows, issue forms, pre-commit ---------------------------------------------------------------------

SCHEMAS = {
    "github-workflows": sorted((GITHUB / "workflows").glob("*.yml")),
    "github-issue-forms": [GITHUB / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")],
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
}


def validate(schema: str, *files: Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_for_github_follow_their_schemas(schema: str) -> None:
    assert SCHEMAS[schema]
    process = validate(schema, *SCHEMAS[schema])
    assert process.returncode == 0, process.stdout


def test_a_misspelt_workflow_is_noticed(tmp_path: Path) -> None:
    text = (GITHUB / "workflows" / "ci.yml").read_text()
    file = tmp_path / "ci.yml"
    file.write_text(text.replace("runs-on:", "run-on:"))
    assert validate("github-workflows", file).returncode == 1


def test_every_file_of_the_folder_has_a_schema() -> None:
    checked = {file for files in SCHEMAS.values() for file in files}
    assert set(GITHUB.rglob("*.yml")) == checked


def test_ci_only_calls_the_script() -> None:
    workflow = load_yaml(GITHUB / "workflows" / "ci.yml")
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    # YAML reads the key "on" as true.
    assert workflow[True].keys() == {"push", "pull_request"}
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert job["timeout-minutes"] <= 30


def test_only_the_publishing_job_can_publish() -> None:
    """It is the last job, and it has no other permission, no token and no code of the project."""
    file = GITHUB / "workflows" / "release.yml"
    workflow = load_yaml(file)
    assert "secrets." not in file.read_text()
    assert workflow["permissions"] == {"contents": "read"}
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert "permissions" not in build
    assert (publish["needs"], publish["environment"]) == ("build", "release")
    assert publish["permissions"] == {"id-token": "write"}
    assert not [step for step in publish["steps"] if "run" in step]


def test_a_release_is_checked_before_it_is_built_and_tested_before_it_is_published() -> None:
    steps = load_yaml(GITHUB / "workflows" / "release.yml")["jobs"]["build"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    expected = (
        *("check_release.py", "absolute_links.py", "install", "-m build "),
        *("auditwheel repair", "twine check", "test_wheel.sh"),
    )
    for command, part in zip(commands, expected, strict=True):
        assert part in command
        for name in re.findall(r"\.github/\S+", command):
            assert (ROOT / name).is_file()
    assert os.access(GITHUB / "test_wheel.sh", os.X_OK)


def test_ruff_has_one_pin() -> None:
    (pin,) = (line for line in PROJECT["optional-dependencies"]["test"] if line.startswith("ruff"))
    (repository,) = load_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    hooks = repository["hooks"]
    assert [hook["entry"].split()[:2] for hook in hooks] == [["ruff", "check"], ["ruff", "format"]]
    assert all(hook["additional_dependencies"] == [pin] for hook in hooks)


def test_the_bug_form_names_commands_that_exist() -> None:
    modules = re.findall(r"`python -m (\S+)`", (GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    assert len(modules) == 2
    assert all(importlib.util.find_spec(module) for module in modules)


# --- Releases -----------------------------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere() -> None:
    newest, _ = script("check_release.py").newest_section()
    assert newest == VERSION == fastcyclegan.__version__


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A copy of the files that a release is checked by, ready for a release."""
    for name in (
        ".github/check_release.py",
        ".github/absolute_links.py",
        "pyproject.toml",
        "fastcyclegan/__init__.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".github/CHANGELOG.md").write_text(
        f"## [Unreleased]\n\n## [{VERSION}] - 2030-12-31\n\n## [0.0.1] - 2029-01-01\n"
    )
    return tmp_path


MISTAKES: list[tuple[str, str, str, str, str]] = [
    ("the tag", "", "", "v9.9.9", f"the tag is v9.9.9, but the version in pyproject.toml is {VERSION}"),
    ("no v", "", "", VERSION, f"the tag is {VERSION}, but"),
    ("the package", "fastcyclegan/__init__.py", f'"{VERSION}"', '"9.9.9"', "__version__ is 9.9.9, but"),
    ("no version", "fastcyclegan/__init__.py", "__version__", "version", "does not assign __version__"),
    ("the changelog", ".github/CHANGELOG.md", f"[{VERSION}]", "[9.9.9]", "CHANGELOG.md is 9.9.9, but"),
    ("no section", ".github/CHANGELOG.md", "## [", "## ", "has no section of the form ## ["),
    ("no date", ".github/CHANGELOG.md", "2030-12-31", "Unreleased", "needs the date of the release, got"),
    ("the repository", "pyproject.toml", SOURCE, "https://github.com/x/y", "names the source https"),
]  # fmt: skip


def test_a_tag_that_matches_can_be_released(release: Path) -> None:
    process = run(sys.executable, ".github/check_release.py", f"v{VERSION}", SOURCE, cwd=release)
    assert (process.returncode, process.stdout) == (0, f"version {VERSION} can be released\n"), process.stderr


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"), MISTAKES, ids=[row[0] for row in MISTAKES]
)
def test_a_mistake_in_a_release_is_one_line(
    release: Path, name: str, file: str, old: str, new: str, message: str
) -> None:
    tag = f"v{VERSION}"
    if file:
        text = (release / file).read_text()
        assert old in text
        (release / file).write_text(text.replace(old, new))
    else:
        tag = new
    process = run(sys.executable, ".github/check_release.py", tag, SOURCE, cwd=release)
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert message in process.stderr


def targets(text: str) -> list[str]:
    """Return where the links and images of a Markdown text lead, found by a parser of Markdown."""
    return [link.text for link in Page("README.md", text).links()]


def test_no_link_of_the_readme_is_relative_on_pypi() -> None:
    text = (ROOT / "README.md").read_text()
    repository = SOURCE.removeprefix("https://github.com/")
    rewritten = script("absolute_links.py").rewritten(text, repository, "v1.2.3")
    assert len(targets(rewritten)) == len(targets(text)) > 5
    assert not [target for target in targets(rewritten) if not target.startswith("https://")]


def test_links_of_the_readme_are_rewritten(release: Path) -> None:
    """Every form of a link is found, and nothing in code is changed."""
    shutil.copytree(ROOT / "bench" / "results", release / "bench" / "results")
    (release / "README.md").write_text(
        "[a](bench/) [`b`](pyproject.toml#L1 'title') [c](#part) [d](https://x.org/y) [e]\n"
        "![f](bench/results/loss_curves.png) [![g](bench/results/loss_curves.png)](bench/results/README.md)\n"
        '`net[:2](x)` <img src="bench/results/loss_curves.png">\n\n'
        "```\n[code](pyproject.toml)\n```\n\n[e]: fastcyclegan/__init__.py\n"
    )
    process = run(sys.executable, ".github/absolute_links.py", "v1", cwd=release)
    assert process.returncode == 0, process.stderr
    raw = SOURCE.replace("github.com", "raw.githubusercontent.com")
    image = f"{raw}/v1/bench/results/loss_curves.png"
    assert (release / "README.md").read_text() == (
        f"[a]({SOURCE}/tree/v1/bench/) [`b`]({SOURCE}/blob/v1/pyproject.toml#L1 'title')"
        f" [c]({SOURCE}/blob/v1/README.md#part) [d](https://x.org/y) [e]\n"
        f"![f]({image}) [![g]({image})]({SOURCE}/blob/v1/bench/results/README.md)\n"
        f'`net[:2](x)` <img src="{image}">\n\n'
        f"```\n[code](pyproject.toml)\n```\n\n[e]: {SOURCE}/blob/v1/fastcyclegan/__init__.py\n"
    )


def test_a_link_of_the_readme_that_leads_nowhere_is_one_line(release: Path) -> None:
    (release / "README.md").write_text("[gone](docs/gone.md)\n")
    process = run(sys.executable, ".github/absolute_links.py", "v1", cwd=release)
    assert (process.returncode, process.stderr) == (
        1,
        "error: README.md links to docs/gone.md, which does not exist\n",
    )


def test_the_test_of_the_wheel_starts_every_command() -> None:
    text = (GITHUB / "test_wheel.sh").read_text()
    (commands,) = re.findall(r"^for command in (.*); do$", text, re.MULTILINE)
    assert {f"fastcyclegan-{name}" for name in commands.split()} == PROJECT["scripts"].keys()
    process = run(GITHUB / "test_wheel.sh", "no.whl")
    assert (process.returncode, process.stderr) == (2, "usage: .github/test_wheel.sh WHEEL\n")


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    options = "-q --no-deps --no-build-isolation".split()
    build = run(sys.executable, "-m", "pip", "wheel", *options, "-w", tmp_path, copy_of_tree(tmp_path))
    assert build.returncode == 0, build.stderr
    (wheel,) = tmp_path.glob("*.whl")
    # The torch of this environment, because a newer one may have to be downloaded.
    (tmp_path / "constraints").write_text(f"torch=={torch.__version__.split('+')[0]}\n")
    process = run(GITHUB / "test_wheel.sh", wheel, PIP_CONSTRAINT=str(tmp_path / "constraints"))
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"{wheel.name}: trains, translates and inspects" in process.stdout


# --- Contributing -------------------------------------------------------------------------------------------

CONTRIBUTING = (GITHUB / "CONTRIBUTING.md").read_text()
# The paragraphs and the items of lists.
PASSAGES = re.split(r"\n(?=\n|\d\. |- )", CONTRIBUTING)
# NAME stands for the name of a new file.
SUFFIXES = (".py", ".md", ".toml", ".yml", ".sh")


def files_named(passage: str) -> dict[str, list[Path]]:
    """Return the files that a passage names in backquotes, by name. New files stand for those like them."""
    names = [name for name in re.findall(r"`([\w./]+)`", passage) if "/" in name or name.endswith(SUFFIXES)]
    return {name: sorted(ROOT.glob(name.replace("NAME", "*"))) for name in names}


def identifiers(passage: str) -> list[str]:
    return [
        name
        for name in re.findall(r"`([A-Za-z_][\w.]*)`", passage)
        if not name.endswith(SUFFIXES) and "/" not in name
    ]


def everything() -> list[Path]:
    folders = ("fastcyclegan", "kernels", "bench", "tests", "scripts")
    return [ROOT / "pyproject.toml", *(file for name in folders for file in (ROOT / name).rglob("*.py"))]


def test_files_that_contributing_names_exist() -> None:
    files = {name: found for passage in PASSAGES for name, found in files_named(passage).items()}
    assert len(files) > 25
    assert not [name for name, found in files.items() if not found]


def test_names_in_contributing_are_in_the_files_beside_them() -> None:
    """A class or function is in one of the files that its passage names, or in any file if it names none."""
    missing, checked = [], 0
    for passage in PASSAGES:
        named = [file for found in files_named(passage).values() for file in found if file.is_file()]
        text = "\n".join(file.read_text() for file in named or everything() if file.suffix != ".md")
        for name in identifiers(passage):
            checked += 1
            if not all(re.search(rf"\b{part}\b", text) for part in name.replace("NAME", r"\w+").split(".")):
                missing.append(name)
    assert checked > 50
    assert not missing


# --- Dockerfile ---------------------------------------------------------------------------------------------

DOCKERFILE = (GITHUB / "Dockerfile").read_text()


def test_the_default_command_of_the_container_trains(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = re.findall(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)
    name, *flags = json.loads(command)
    assert PROJECT["scripts"][name] == "fastcyclegan.commands:train"
    assert cli.train([*flags, "--dry_run"]) == 0
    assert re.search(r"checkpoints_dir +runs\n", capsys.readouterr().out)  # in /, so it is the volume /runs


def test_the_container_has_what_it_copies_and_installs() -> None:
    copied = {
        name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert copied >= {"fastcyclegan", "kernels", "pyproject.toml"}
    assert all((ROOT / name).exists() for name in copied)
    ignored = (GITHUB / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    (extras,) = re.findall(r"^ARG EXTRAS=\"(.*)\"$", DOCKERFILE, re.MULTILINE)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_the_container_has_the_torch_that_ci_tests() -> None:
    pins = re.findall(r"\btorch==\S+", (ROOT / ".ci" / "run").read_text() + DOCKERFILE)
    assert len(pins) == 2
    assert len(set(pins)) == 1
