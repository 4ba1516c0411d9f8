"""Tests of how a configuration is chosen: from a shipped table, from a stored choice or by measurement."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.kernels import _cache, _failures, _tune
from fastcyclegan.kernels._failures import KernelError
from fastcyclegan.kernels._launch import Chip, Config

SLOW, FAST = Config((("BLOCK_S", 64),), 4), Config((("BLOCK_S", 128),), 8)
GPU = torch.device("cuda", 0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """Simulate a GPU on which FAST is faster, and return a list for the configurations that are run."""
    log: list[Config] = []

    def measure(run: Callable[[], None]) -> float:
        run()
        return 1.0 if log[-1] == FAST else 2.0

    monkeypatch.setattr(_tune, "measure", measure)
    monkeypatch.setattr(_tune, "_chosen", {})
    monkeypatch.setattr(_failures, "_reported", set())
    monkeypatch.setattr(_tune, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _tune._table.cache_clear()
    return log


def choose(log: list[Config], key: str = "bf16 1 64", device: torch.device = GPU) -> Config:
    return _tune.choose("apply", key, [SLOW, FAST], device, log.append)


def start_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear all choices that are kept in memory, so that the test continues like a new process."""
    monkeypatch.setattr(_tune, "_chosen", {})
    _tune._table.cache_clear()


def test_a_choice_is_measured_once_and_stored_on_disk(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(measured) == FAST
    assert measured == [SLOW, FAST]
    assert choose(measured) == FAST
    start_new_process(monkeypatch)
    assert choose(measured) == FAST
    assert measured == [SLOW, FAST]
    choose(measured, "another shape")
    assert len(measured) == 4


def test_a_shipped_table_takes_precedence(measured: list[Config]) -> None:
    _tune.SHIPPED.mkdir()
    table = {"apply bf16 1 64": {"BLOCK_S": 64, "num_warps": 4, "num_stages": 1}}
    (_tune.SHIPPED / _tune._file_name("Test GPU")).write_text(json.dumps(table))
    assert choose(measured) == SLOW
    assert measured == []


@pytest.mark.parametrize(
    "stored", ["{", "[]", '{"apply bf16 1 64": {"BLOCK_S": 7}}', '{"apply bf16 1 64": 3}', "[" * 100_000]
)
def test_a_damaged_or_outdated_table_is_measured_again(measured: list[Config], stored: str) -> None:
    """If the stored table is damaged, or its choice is no longer in the list, configurations are measured."""
    file = _tune.cache_file("Test GPU")
    file.parent.mkdir(parents=True)
    file.write_text(stored)
    assert choose(measured) == FAST
    assert json.loads(file.read_text())["apply bf16 1 64"]["BLOCK_S"] == 128


def test_nothing_is_measured_inside_a_capture(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(measured) == SLOW
    assert measured == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert choose(measured) == FAST


def test_an_unwritable_disk_does_not_prevent_a_choice(measured: list[Config], tmp_path: Path) -> None:
    (tmp_path / "fastcyclegan").write_text("a file where the folder should be")
    assert choose(measured) == FAST


def test_a_full_gpu_runs_the_first_configuration_and_stores_nothing(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Callable[[], None]) -> float:
        raise torch.cuda.OutOfMemoryError("no room for the flush of the cache")

    with monkeypatch.context() as patch:
        patch.setattr(_tune, "measure", full)
        assert choose(measured) == SLOW
    assert choose(measured) == FAST


def test_a_dry_run_lists_the_configurations_that_the_gpu_would_run(measured: list[Config]) -> None:
    """A dry run lists and counts all configurations if the GPU would time them.

    If a table contains the choice, the dry run lists only that configuration.
    """
    choices: list[int] = []

    def dry(name: str, **options: bool) -> dict[str, int]:
        with dry_run(chip=Chip(name=name), **options) as run:
            choices.append(choose(measured, device=torch.device("cpu")))
        return run.choices

    assert dry("Test GPU", all_configs=True) == {"apply bf16 1 64": 2}
    # The caller runs the chosen configuration.
    assert (measured, choices) == ([FAST], [SLOW])
    assert choose(measured) == FAST
    measured.clear()
    assert dry("Test GPU", all_configs=True) == dry("Test GPU") == dry("") == {}
    assert dry("Another GPU", all_configs=True) == {"apply bf16 1 64": 2}
    assert (measured, choices[1:]) == ([FAST], [FAST, FAST, SLOW, SLOW])


def failing(*working: Config) -> Callable[[Config], None]:
    """Return a function that raises a launch's error for every configuration except those in ``working``."""

    def run(config: Config) -> None:
        if config not in working:
            raise KernelError(
                "_k",
                f"kernel _k does not launch on Test GPU ({config.num_warps} warps)",
                "To reproduce it: show it",
            )

    return run


def test_a_configuration_that_fails_is_skipped(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tune, "measure", lambda run: run() or 1.0)
    configs = [SLOW, FAST, Config((("BLOCK_S", 256),), 16)]
    with pytest.warns(RuntimeWarning) as caught:
        assert _tune.choose("apply", "key", configs, GPU, failing(FAST)) == FAST
    assert [str(w.message) for w in caught] == [
        f"measuring apply: kernel _k does not launch on Test GPU ({c.num_warps} warps); configuration"
        f" {{'BLOCK_S': {c.constants['BLOCK_S']}, 'num_warps': {c.num_warps}, 'num_stages': 1}} is skipped."
        " To reproduce it: show it"
        for c in (configs[0], configs[2])
    ]
    assert json.loads(_tune.cache_file("Test GPU").read_text())["apply key"]["BLOCK_S"] == 128
    # For another shape, the same configurations fail for the same reasons, which have already been reported.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _tune.choose("apply", "another", configs, GPU, failing(FAST)) == FAST


def test_if_all_configurations_fail_the_first_error_is_raised(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If every configuration fails, the first error is raised, and nothing is stored.

    The caller then falls back and reports the error, so nothing else is reported here.
    """
    monkeypatch.setattr(_tune, "measure", lambda run: run() or 1.0)
    warnings.simplefilter("error")  # pytest restores the filters
    with pytest.raises(KernelError, match=r"\(4 warps\)"):
        _tune.choose("apply", "key", [SLOW, FAST], GPU, failing())
    assert not _tune.cache_file("Test GPU").exists()
    assert not _tune._chosen


def test_a_user_without_a_home_directory(measured: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert _tune.cache_file("Test GPU").is_absolute()


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So says the specification of the variable."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert _tune.cache_file("Test GPU").is_relative_to(tmp_path / ".cache" / "fastcyclegan")


def test_triton_makes_no_folder_named_tilde_for_a_user_without_a_home_directory(tmp_path: Path) -> None:
    code = """if True:
        import os, pwd
        def unknown(number):
            raise KeyError(number)
        pwd.getpwuid = unknown
        import triton, fastcyclegan.kernels._launch
        print(triton.knobs.cache.dir)
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "TRITON_HOME", "TRITON_CACHE_DIR")
    }
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, text=True, capture_output=True, check=True, cwd=tmp_path)
    assert ended.stdout == f"{_cache.temporary_folder('triton')}/.triton/cache\n"


def test_no_measurement_on_a_cpu_or_without_a_choice(measured: list[Config]) -> None:
    assert choose(measured, device=torch.device("cpu")) == SLOW
    assert _tune.choose("apply", "key", [FAST], GPU, measured.append) == FAST
    assert measured == []
