"""Tests of the layout: which rooms each room can use, no circular imports, and a test file per module."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.pages.page import pages

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastcyclegan"

# The rooms (folders) and public modules, in order. Each may use itself and those in the rows above it.
ROWS = (
    ("errors",),
    ("files",),
    ("console", "settings", "reference", "kernels"),
    ("tensor_files",),
    ("nn",),
    ("tiles",),
    ("data",),
    ("metrics",),
    ("recipes",),
    ("config",),
    ("checkpoints",),
    ("compat",),
    ("devtools",),
    ("engine",),
    ("testing",),
    ("fusion",),
    ("training", "inference"),
    ("official",),
    ("command_line",),
    ("api",),
    ("models",),
    ("cli",),
    ("kernel_gate",),
    ("commands",),
)


RECIPE_NAMES = re.compile(r"(?<!fast)cycle_?gan|\bG_(AB|BA)\b|\bD_[AB]\b", re.IGNORECASE)


def name_of(file: Path) -> str:
    """Return the dotted name of a module within the package. The kernels count as part of the package."""
    within = file.relative_to(ROOT if file.is_relative_to(ROOT / "kernels") else PACKAGE)
    return ".".join(part for part in within.with_suffix("").parts if part != "__init__")


@cache
def modules() -> dict[str, Path]:
    """Return the file of each module of the package, by its dotted name without the package name."""
    files = [file for file in PACKAGE.rglob("*.py") if not file.is_relative_to(PACKAGE / "kernels")]
    return {
        name_of(file): file
        for file in [*files, *(ROOT / "kernels").rglob("*.py")]
        if file != PACKAGE / "__init__.py"
    }


def imported(file: Path) -> Iterator[str]:
    """Yield all modules, and names from modules, that ``file`` imports anywhere, including for types only."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Only the kernels use relative imports.
            package = ("fastcyclegan", *file.parent.relative_to(ROOT).parts) if node.level else ()
            outer = package[: len(package) + 1 - node.level]
            base = ".".join(filter(None, (*outer, node.module)))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def used_by(module: str) -> set[str]:
    """Return the modules of the package that ``module`` imports."""
    inner = {
        name.removeprefix("fastcyclegan.")
        for name in imported(modules()[module])
        if name.startswith("fastcyclegan.")
    }
    used = {name for name in inner if name in modules()}
    # ``from fastcyclegan.nn import chains`` uses chains, and not names of the room itself.
    return {name for name in used if not any(other.startswith(f"{name}.") for other in used)} - {module}


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_room_has_one_row() -> None:
    assert sorted(name for row in ROWS for name in row) == sorted({room(module) for module in modules()})


@pytest.mark.parametrize("module", modules())
def test_rooms_only_use_the_rows_above(module: str) -> None:
    (row,) = (number for number, names in enumerate(ROWS) if room(module) in names)
    allowed = {name for names in ROWS[:row] for name in names} | {room(module)}
    wrong = sorted(name for name in used_by(module) if room(name) not in allowed)
    assert not wrong, f"{module} uses {', '.join(wrong)}, which {room(module)} must not use"


def test_there_are_no_circular_imports() -> None:
    """Imports in functions and for types count as well. graphlib's CycleError shows the cycle."""
    order = list(TopologicalSorter({module: used_by(module) for module in modules()}).static_order())
    assert len(order) == len(modules())


def test_all_kinds_of_imports_are_found() -> None:
    """Imports are found in every form. Otherwise, the tests of this file would pass without checking them."""
    assert {"recipes.recipe", "data.batch", "kernels", "engine.choices"} <= used_by("engine.engine")
    assert "kernels._launch" in used_by("kernels._tune")  # relative
    assert {"kernels._cache", "kernels.cpu._compiler"} <= used_by("kernels.cpu.library")  # in a folder
    assert "devtools.compile_kernels" in used_by("engine.ahead")  # inside a function
    assert "kernels._launch" in used_by("engine.ahead")  # only for types
    assert "fusion" not in used_by("fusion.accelerate")


@pytest.mark.parametrize(
    "folder", sorted({name for row in ROWS for name in row if (PACKAGE / name).is_dir()} - {"kernels"})
)
def test_rooms_document_their_contents_and_the_rooms_they_use(folder: str) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text())) or ""
    uses = re.search(r"^Uses (.*)", text, re.MULTILINE | re.DOTALL)
    assert len(text.splitlines()) >= 4
    assert uses is not None, f"{folder}: its docstring does not list the rooms that it uses"
    documented = set(re.findall(r"``(\w+)``", uses[1]))
    used = {room(name) for module in modules() if room(module) == folder for name in used_by(module)} - {
        folder,
        "errors",
        "console",
    }
    assert documented == used, (
        f"{folder}/__init__.py lists {sorted(documented)}, but its modules use {sorted(used)}"
    )


def test_files_mentioned_in_texts_exist() -> None:
    """Every Python file that a module or a page mentions in backquotes must exist, even after a move."""
    files = [
        path
        for folder in ("fastcyclegan", "kernels", "bench", "tests", "scripts")
        for path in (ROOT / folder).rglob("*.py")
    ]
    files += ROOT.glob("*.py")
    existing = {f"/{path.relative_to(ROOT).as_posix()}" for path in files}
    texts = [
        *modules().values(),
        *(ROOT / "bench").glob("*.py"),
        *(ROOT / page.name for page in pages()),
    ]
    # NAME stands for a name that a reader chooses.
    names = re.compile(r"`((?:(?!NAME)[\w/])+\.py)`")
    mentions = {(text, name) for text in texts for name in names.findall(text.read_text())}
    assert len(mentions) > 40
    assert not [
        f"{text.relative_to(ROOT)} mentions {name}"
        for text, name in sorted(mentions)
        if not any(path.endswith(f"/{name}") for path in existing)
    ]


def test_the_reference_imports_only_torch() -> None:
    outer = {name.split(".")[0] for name in imported(PACKAGE / "reference.py")}
    assert outer <= {"torch", "__future__", "collections", "dataclasses"}


# --- Tests and benches --------------------------------------------------------------------------------------

# Modules whose tests are in a file with another name.
ELSEWHERE = {
    "data.batch": "data/test_loader.py",
    "data.dataset_page": "data/test_dataset_report.py",
    "devtools.read_kernel": "devtools/test_compile_kernels.py",
    "devtools.tile_occupancy": "kernel_gate/test_command.py",
    "fusion.class_code": "fusion/test_odd_networks.py",
    "kernels.backend_table": "bench/test_gpu_suite.py",
    "kernels.border_triton": "kernels/test_border_launch.py",
    "kernels._cache": "kernels/test_records.py",
    "kernels._calls": "kernels/test_fallback.py",
    "kernels.cpu.calls": "kernels/cpu/test_autograd.py",
    "kernels.cpu.compiled_library": "kernels/cpu/test_library.py",
    "kernels.cpu.native": "kernels/cpu/test_functions.py",
    "kernels.descriptor_triton": "kernels/test_descriptor_launch.py",
    "kernels.every_kernel": "devtools/test_compile_worker.py",
    "kernels.instance_norm_triton": "kernels/test_instance_norm.py",
    "kernels._launch": "devtools/test_dry_run.py",
    "kernels._layout": "kernels/test_reflect_conv.py",
    "kernels._norm": "kernels/test_instance_norm_launch.py",
    "kernels._operator": "kernels/test_fallback.py",
    "kernels._plain_parts": "kernels/test_plain.py",
    "kernels._product_tiles": "kernels/test_products.py",
    "kernels._product_triton": "kernels/test_products.py",
    "kernels.reflect_conv_triton": "kernels/test_reflect_conv.py",
    "kernels._tiles": "kernels/test_instance_norm.py",
    "kernels.zero_conv_triton": "kernels/test_zero_conv.py",
    "settings.evaluation": "test_config.py",
    "engine.streams": "engine/test_failed_capture_gpu.py",
    "recipes.recipe": "recipes/test_cyclegan.py",
    **dict.fromkeys(
        [f"settings.{name}" for name in "checks data engine finetune networks optim recipe run".split()],
        "test_config.py",
    ),
    "command_line.late_import": "test_commands.py",
    "training.given_settings": "test_api.py",
    "training.run_table": "training/test_start.py",
}


def tests_of(module: str) -> Path:
    """Return the test file that ``module`` should have according to its name."""
    *folders, stem = module.split(".")
    return ROOT.joinpath("tests", *folders, f"test_{stem.strip('_')}.py")


@pytest.mark.parametrize(
    "module", [module for module, file in modules().items() if file.name != "__init__.py"]
)
def test_every_module_has_tests(module: str) -> None:
    if module in ELSEWHERE:
        assert not tests_of(module).exists(), f"{module} has its own test file, so ELSEWHERE must not list it"
        assert (ROOT / "tests" / ELSEWHERE[module]).exists()
    else:
        assert tests_of(module).exists()


@pytest.mark.parametrize("place", ["engine", "training", "checkpoints", "inference", "api"])
def test_what_serves_every_recipe_names_none(place: str) -> None:
    """A recipe is one file: what trains, saves, loads and applies it uses only the interface."""
    own = {"recipes.recipe", "recipes.registry"}
    for module in (name for name in modules() if room(name) == place):
        assert {name for name in used_by(module) if room(name) == "recipes"} <= own, module
        nodes = list(ast.walk(ast.parse(modules()[module].read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        texts = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        for text in texts:
            is_named = RECIPE_NAMES.search(text.value) is not None
            assert not is_named or id(text) in docstrings, f"{module}: {text.value}"


def test_elsewhere_lists_only_existing_modules() -> None:
    assert ELSEWHERE.keys() <= modules().keys()


@pytest.mark.parametrize("folder", ["bench", "tests"])
def test_no_module_changes_sys_path(folder: str) -> None:
    """``bench`` and ``tests`` are packages that are imported from the root, so no module changes sys.path.

    The fake official checkout is left out, because it stands for third-party code, and so is a program that
    stands for Python.
    """
    checkout = ROOT / "tests" / "official" / "checkout"
    not_modules = (Path(__file__), ROOT / "tests" / "pages" / "forked_python.py")
    files = [
        file
        for file in (ROOT / folder).rglob("*.py")
        if not file.is_relative_to(checkout) and file not in not_modules
    ]
    assert len(files) > 20
    assert not [file for file in files if re.search(r"sys\.path\b", file.read_text())]


def test_benches_also_run_with_their_folder_on_the_path() -> None:
    """The benches run with ``bench`` on PYTHONPATH, as in the commands documented for GPU machines."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((".", "bench"))}
    command = [sys.executable, "-m", "bench.report", "--help"]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "--against" in process.stdout
