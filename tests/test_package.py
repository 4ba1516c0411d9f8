"""Tests of the package as shipped: light imports, kernels in each kind of install, pins, lint and types."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastcyclegan"

HEAVY = {"tyro", "rich", "tensorboard", "matplotlib"}


def test_engine_and_benches_import_without_command_line_libraries() -> None:
    """Networks, engine and benches can be imported on a GPU machine with only torch, numpy and Pillow."""
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in sorted(HEAVY))
    needed = ", ".join(
        f"fastcyclegan.{name}"
        for name in ("engine", "testing", "data.choose_loader", "kernel_gate.command", "official.__main__")
    )
    code = f"import sys; {blocked}import {needed}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_a_network_is_light() -> None:
    """It loads torch, but no image loaders, logging or compiler."""
    heavy = {"tyro", "rich", "PIL", "tensorboard", "triton", "nvidia"}
    code = "import sys; from fastcyclegan import Generator; print("
    code += f"sorted({{m.split('.')[0] for m in sys.modules}} & {heavy}))"
    process = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert process.stdout.strip() == "[]"


def test_kernels_can_only_be_imported_through_the_package() -> None:
    link = PACKAGE / "kernels"
    assert link.is_symlink()
    assert link.readlink() == Path("../kernels")
    subprocess.run([sys.executable, "-c", "import fastcyclegan.kernels"], check=True, cwd=ROOT)
    process = subprocess.run(
        [sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode != 0
    assert "this folder is the package fastcyclegan.kernels, not 'kernels'" in process.stderr


def test_pyproject_lists_every_package_folder() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    names = {file.parent.relative_to(ROOT) for file in PACKAGE.rglob("__init__.py")}
    # rglob does not follow the symbolic link to the kernels.
    names |= {
        "fastcyclegan" / file.parent.relative_to(ROOT) for file in (ROOT / "kernels").rglob("__init__.py")
    }
    # Folders of files that are no modules, which setuptools counts as packages.
    names |= {Path("fastcyclegan", "kernels", "cpu", name) for name in ("source", "tables")}
    assert sorted(setup["packages"]) == sorted(".".join(name.parts) for name in names)


def test_pins_and_markers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert "torch>=2.11" in project["dependencies"]
    assert "triton>=3.6,<3.10; sys_platform == 'linux'" in project["dependencies"]
    extras = project["optional-dependencies"]
    assert {"log", "dali", "dali-cu12", "test", "bench"} <= extras.keys()
    assert not any("dali" in line for line in project["dependencies"])


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["mypy", "bench"]],
    ids=" ".join,
)
def test_lint_and_types(command: list[str]) -> None:
    process = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_scripts_are_short() -> None:
    for script in (ROOT / "scripts").glob("[a-z]*.py"):
        assert len(script.read_text().splitlines()) <= 12, script
