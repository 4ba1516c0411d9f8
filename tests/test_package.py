"""Tests of the package as shipped: light imports, kernels in each kind of install, pins, lint and types."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib
import zipfile
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


# Files of the C++ kernels that are no modules.
CPP = ("source/planted.cpp", "source/planted.h", "tables/planted.json")


def test_the_wheel_contains_the_kernels_and_works_without_the_checkout(tmp_path: Path) -> None:
    options = "-q --no-deps --no-build-isolation".split()
    tree = copy_of_tree(tmp_path)
    others = {f"kernels/cpu/{name}" for name in cpp_files(tree)} | {"kernels/README.md", "py.typed"}
    build = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(tmp_path), str(tree)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    # In the checkout, the kernels are reached through a symbolic link.
    files = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    files |= {
        f"fastcyclegan/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == files
    assert {f"fastcyclegan/{name}" for name in others} < set(names)
    assert not any(name.startswith("kernels/") for name in names)
    modules = sorted(name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files)
    process = subprocess.run(
        [sys.executable, "-c", IMPORTS, *modules],
        cwd=tmp_path / "site",
        check=True,
        capture_output=True,
        text=True,
    )
    places = json.loads(process.stdout)
    assert len(places) == len(modules) > 100
    assert all(Path(place).is_relative_to(tmp_path / "site") for place in places)


def cpp_files(tree: Path) -> set[str]:
    """Add CPP to kernels/cpu, and return the names of all files in that folder that are no modules."""
    folder = tree / "kernels" / "cpu"
    for name in CPP:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*.*") if file.suffix != ".py"}


def test_the_source_archive_contains_the_cpp_files(tmp_path: Path) -> None:
    tree = copy_of_tree(tmp_path)
    files = cpp_files(tree)
    code = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tree, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as contents:
        names = {name.partition("/")[2] for name in contents.getnames()}
    assert {f"kernels/cpu/{name}" for name in files} < names


IMPORTS = """
import importlib, json, sys
print(json.dumps([importlib.import_module(name).__file__ for name in sys.argv[1:]]))
"""


def test_pyproject_lists_every_package_folder() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    names = {file.parent.relative_to(ROOT) for file in PACKAGE.rglob("__init__.py")}
    # rglob does not follow the symbolic link to the kernels.
    names |= {
        "fastcyclegan" / file.parent.relative_to(ROOT) for file in (ROOT / "kernels").rglob("__init__.py")
    }
    assert sorted(setup["packages"]) == sorted(".".join(name.parts) for name in names)


def copy_of_tree(tmp_path: Path) -> Path:
    """Copy the files needed for a build, so that it leaves nothing in the checkout."""
    import shutil

    tree = tmp_path / "tree"
    shutil.copytree(
        PACKAGE, tree / "fastcyclegan", symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(ROOT / "kernels", tree / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree / name)
    return tree


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
