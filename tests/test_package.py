"""The package as it ships: which way imports point, the kernels folder under every kind of install, markers and pins, lint and types."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastcyclegan"

# What each layer may import of the package. Lower layers know nothing of higher ones.
FREE = {"errors", "config"}
ALLOWED = {
    "reference": set(),
    "kernels": {"kernels"},
    "errors": set(),
    "config": {"errors"},
    "schedule": FREE,
    "image_pool": set(),
    "flow": {"reference", "kernels"},
    "blocks": {"reference", "kernels", "flow"},
    "tensor_files": FREE,
    "checkpoint": {"tensor_files"} | FREE,
    "hub": {"checkpoint", "tensor_files"} | FREE,
    "networks": {"reference", "kernels", "flow", "blocks", "hub"} | FREE,
    "compat": {"reference", "networks"},
    "fused": {"reference", "kernels", "flow", "blocks"},
    "decisions": set(),
    "call_sites": {"decisions"},
    "fusable": {"flow", "fused", "call_sites"},
    "accelerate": {"kernels", "flow", "fused", "fusable", "call_sites"},
    "counters": {"kernels", "networks"},
    "waves": {"kernels", "counters"},
    # Neither knows the engine: they are handed what to run.
    "compile_kernels": {"kernels", "counters"},
    "data": {"data"} | FREE,
    "passes": {"reference", "flow", "blocks", "networks"},
    "losses": set(),
    "recipes": {"reference", "losses", "networks", "passes", "image_pool", "data", "recipes"} | FREE,
    "engine": {"engine", "recipes", "passes", "networks", "data", "kernels", "compile_kernels"} | FREE,
    "architecture": {"networks"},
    "loading": {"architecture", "checkpoint", "tensor_files"} | FREE,
    "inspect_checkpoint": {"architecture", "tensor_files"} | FREE,
    "report": {"checkpoint"} | FREE,
    "console": set(),
    "official_networks": {"compat", "networks"},
    "official_step": {"engine", "recipes", "passes", "image_pool", "data"} | FREE,
    "official_proof": {"networks", "official_networks", "official_step"},
    "official_source": set(),
    "official_watch": {"image_pool", "official_source", "official_step"} | FREE,
    "official_model": {"engine", "networks", "passes"}
    | {f"official_{part}" for part in ("networks", "source", "step", "proof", "watch")}
    | FREE,
    "official": {"official_networks", "official_model"} | FREE,
}
HEAVY = {"tyro", "rich", "tensorboard", "matplotlib"}


def imports(file: Path) -> set[str]:
    """Return the modules that ``file`` imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "fastcyclegan" else {node.module}
            found |= names
    return found


def layer(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_point_one_way(name: str) -> None:
    files = sorted((PACKAGE / name).rglob("*.py")) if (PACKAGE / name).is_dir() else [PACKAGE / f"{name}.py"]
    assert files
    for file in files:
        inner = {layer(module) for module in imports(file) if module.startswith("fastcyclegan.")}
        assert inner <= ALLOWED[name], file


def test_the_reference_imports_torch_alone() -> None:
    outer = {module.split(".")[0] for module in imports(PACKAGE / "reference.py")}
    assert outer <= {"torch", "__future__", "collections", "dataclasses"}


def test_what_a_bare_machine_runs_needs_no_libraries_of_the_command_line() -> None:
    """Networks, engine and bench import on a GPU machine that has torch, numpy and Pillow alone."""
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in sorted(HEAVY))
    needed = ", ".join(f"fastcyclegan.{name}" for name in ("engine", "testing", "data.loaders", "kernel_gate", "official"))
    code = f"import sys; {blocked}import {needed}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_is_light() -> None:
    """``import fastcyclegan`` brings the networks, not the loaders, the logs or a compiler."""
    heavy = {"tyro", "rich", "PIL", "tensorboard", "triton", "nvidia"}
    code = f"import sys, fastcyclegan; print(sorted({{m.split('.')[0] for m in sys.modules}} & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_kernels_is_reached_by_the_link_and_guards_its_name() -> None:
    link = PACKAGE / "kernels"
    assert link.is_symlink()
    assert link.readlink() == Path("../kernels")
    subprocess.run([sys.executable, "-c", "import fastcyclegan.kernels"], check=True, cwd=ROOT)
    done = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "this folder is the package fastcyclegan.kernels, not 'kernels'" in done.stderr


def test_the_wheel_has_the_kernels_inside_the_package_and_works_alone(tmp_path: Path) -> None:
    options = "-q --no-deps --no-build-isolation".split()
    build = [sys.executable, "-m", "pip", "wheel", *options, "-w", str(tmp_path), str(copy_of_tree(tmp_path))]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    modules = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    modules |= {f"fastcyclegan/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "fastcyclegan/kernels/README.md" in names
    assert "fastcyclegan/py.typed" in names
    assert not any(name.startswith("kernels/") for name in names)
    code = "import fastcyclegan.kernels, fastcyclegan.cli; print(fastcyclegan.kernels.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site", check=True, capture_output=True, text=True)
    assert str(tmp_path / "site") in done.stdout


def copy_of_tree(tmp_path: Path) -> Path:
    """Copy what git tracks, so that a build leaves nothing in the checkout."""
    import shutil

    tree = tmp_path / "tree"
    shutil.copytree(PACKAGE, tree / "fastcyclegan", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "kernels", tree / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
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


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["mypy", "bench"]], ids=" ".join)
def test_lint_and_types(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_are_thin() -> None:
    for script in (ROOT / "scripts").glob("[a-z]*.py"):
        assert len(script.read_text().splitlines()) <= 12, script
