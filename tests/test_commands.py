"""The console commands: what they import, and what a missing package and Ctrl-C do to them."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fastcyclegan
from fastcyclegan import commands
from fastcyclegan.errors import UserError
from fastcyclegan.nn.networks import Generator

ROOT = Path(__file__).parents[1]
COMMANDS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# The arguments with which a command imports torch, other than --help.
IMPORTING = {
    "fastcyclegan-make-aligned": ("a", "b", "out"),
    "fastcyclegan-evaluate": ("--fake", "a", "--real", "b"),
}
# What pip writes into the program of a console command, after handling signals as in a terminal: a background
# script ignores SIGINT.
PROGRAM = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    " signal.signal(signal.SIGUSR1, signal.SIG_DFL); import sys; from {} import {}; sys.exit({}())"
)


def run_command(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a console command. Modules in ``folder`` replace those that are installed."""
    module, function = COMMANDS[name].split(":")
    code = PROGRAM.format(module, function, function)
    # Not the modules in the current folder, which would come before those in ``folder``.
    command = [sys.executable, "-P", "-c", code, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT)))}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_during_the_imports_ends_a_command_without_a_traceback(name: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "import os, signal\nsignal.raise_signal(signal.SIGINT)\nprint('went on', flush=True)\n"
    )
    process = run_command(name, tmp_path, *IMPORTING.get(name, ("--help",)))
    assert process.returncode == -signal.SIGINT
    assert process.stdout + process.stderr == ""


def test_a_request_to_save_during_the_imports_does_not_end_a_command(tmp_path: Path) -> None:
    (tmp_path / "tyro.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGUSR1)\nprint('went on')\n"
    )
    process = run_command("fastcyclegan-train", tmp_path, "--help")
    assert process.stdout == "went on\n"


def test_a_reader_that_wants_no_more_ends_a_command_without_an_error(tmp_path: Path) -> None:
    process = subprocess.run(
        ["bash", "-c", f"{sys.executable} {ROOT / 'scripts' / 'train.py'} --help | true; echo $PIPESTATUS"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stderr == ""
    assert process.stdout in ("141\n", "0\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_lost_output_is_told_by_the_exit_code(tmp_path: Path) -> None:
    script = f"{sys.executable} {ROOT / 'scripts' / 'inspect_checkpoint.py'}"
    torch.save(Generator(ngf=2, n_blocks=0).state_dict(), tmp_path / "net.pth")
    lost = "No space left on device: continuing without output\n"
    for command, code, text in (("missing.pth 2> /dev/full", 2, ""), ("net.pth > /dev/full", 2, lost)):
        ended = subprocess.run(
            f"{script} {command}", shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_package_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(name='torch')\n")
    process = run_command(name, tmp_path, *IMPORTING.get(name, ("--help",)))
    assert process.returncode == 2
    assert process.stderr == "error: this command needs the package torch: python -m pip install torch\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_runs_the_function_of_its_script(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = name.removeprefix("fastcyclegan-").replace("-", "_")
    assert COMMANDS[name] == f"fastcyclegan.commands:{script}"

    def imported(module: str, function: str) -> Callable[[], int]:
        assert f'function("{module}", "{function}")()' in (ROOT / "scripts" / f"{script}.py").read_text()
        assert callable(getattr(importlib.import_module(module), function))
        return lambda: 5

    monkeypatch.setattr(commands, "function", imported)
    assert getattr(commands, script)() == 5


@pytest.mark.parametrize("module", ["fastcyclegan", "fastcyclegan.commands"])
def test_nothing_but_the_standard_library_is_imported_before(module: str) -> None:
    code = f"import sys; import {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-S", "-P", "-c", code]  # an editable installation would import more
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert set(process.stdout.split()) - {*sys.stdlib_module_names, "__main__"} == {"fastcyclegan"}


def test_every_public_name_is_found() -> None:
    names: dict[str, object] = {}
    exec("from fastcyclegan import *", names)
    assert set(fastcyclegan.__all__) <= names.keys()
    assert set(fastcyclegan.__all__) <= set(dir(fastcyclegan))
    assert names["UserError"] is UserError
    with pytest.raises(AttributeError, match="module 'fastcyclegan' has no attribute 'Generators'"):
        _ = fastcyclegan.Generators
    code = "import fastcyclegan; print(fastcyclegan.compat.define_G, fastcyclegan.nn.layers.__name__)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout.endswith("fastcyclegan.nn.layers\n"), process.stderr
