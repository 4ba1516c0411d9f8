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

# The rooms and leaves of the package, in order: each may use those of the rows above it.
ROWS = (
    ("errors", "reference", "kernels", "console"),
    ("config", "tensor_files"),
    ("nn", "data"),
    ("recipes", "checkpoints", "fusion", "compat", "devtools"),
    ("engine",),
    ("testing",),
    ("training", "inference", "official"),
    ("api",),
    ("cli",),
    ("kernel_gate",),
)
# Arrows that still point the other way.
WRONG = {
    ("nn", "checkpoints"),
    ("data", "checkpoints"),
    ("recipes", "engine"),
    ("inference", "training"),
}
HEAVY = {"tyro", "rich", "tensorboard", "matplotlib"}


def modules() -> dict[str, Path]:
    """Return the file of each module of the package, by its dotted name without the package's."""
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").glob("*.py")]
    parts = {file: [part for part in file.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"] for file in files}
    return {".".join(names): file for file, names in parts.items()}


def imports(file: Path) -> set[str]:
    """Return the modules that ``file`` imports anywhere, for its types too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # Relative imports are those of the kernels.
            base = ".".join(filter(None, ("fastcyclegan.kernels" if node.level else "", node.module)))
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


def of_the_package(file: Path) -> set[str]:
    """Return the modules of the package that ``file`` imports, by their names without the package's."""
    known = modules()
    inner = {name.removeprefix("fastcyclegan.") for name in imports(file) if name.startswith("fastcyclegan.")}
    # ``from fastcyclegan.nn import chains`` is about chains, not about the room's docstring.
    return {name for name in inner if name in known and not any(other.startswith(f"{name}.") for other in inner)}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_a_row() -> None:
    assert {room(module) for module in modules() if module} == {name for row in ROWS for name in row}


@pytest.mark.parametrize("module", [module for module in modules() if module])
def test_arrows_point_one_way(module: str) -> None:
    (row,) = (number for number, names in enumerate(ROWS) if room(module) in names)
    above = {name for names in ROWS[:row] for name in names} | {room(module)}
    above |= {there for here, there in WRONG if here == room(module)}
    used = {room(name) for name in of_the_package(modules()[module])}
    assert used <= above, f"{module} uses {sorted(used - above)}"


def test_the_reference_imports_torch_alone() -> None:
    outer = {module.split(".")[0] for module in imports(PACKAGE / "reference.py")}
    assert outer <= {"torch", "__future__", "collections", "dataclasses"}


def test_what_a_bare_machine_runs_needs_no_libraries_of_the_command_line() -> None:
    """Networks, engine and bench import on a GPU machine that has torch, numpy and Pillow alone."""
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in sorted(HEAVY))
    needed = ", ".join(
        f"fastcyclegan.{name}" for name in ("engine", "testing", "data.choose_loader", "kernel_gate.command", "official.__main__")
    )
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
