"""Signals to a training process: it ends with its files saved, and those that were ignored at its start stay
ignored.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fastcyclegan.tensor_files import load_tensors
from tests.training.runs import arguments, assert_same_state, iterations_done, run, start_process


def wait_for(process: subprocess.Popen[str], folder: Path, iteration: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and iterations_done(folder) < iteration and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_ends(
    dataset: Path, tmp_path: Path, unbroken: Path, number: signal.Signals
) -> None:
    args = arguments(dataset, tmp_path, "r", "--max_iters", "150", "--print_freq", "1", "--num_threads", "2")
    process = start_process(args)
    wait_for(process, tmp_path / "r", 10)
    # To the whole group, as a terminal, timeout and a job queue do: the loader's processes must not fall over
    # it.
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert f"{number.name}: saving after this iteration" in output
    assert "Traceback" not in output
    assert "resume with --continue_train --name r" in output
    done = load_tensors(tmp_path / "r" / "state.pt")["iteration"]
    assert 10 <= done < 150
    run(dataset, tmp_path, "r", "--continue_train")
    assert_same_state(unbroken, tmp_path / "r")


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, signal.SIGINT], ids=["nohup", "in the background of a script"]
)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    dataset: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Whoever starts a run so wants it to outlive the terminal, or what is typed into it; SIGTERM ends it all
    the same.
    """
    process = start_process(
        arguments(dataset, tmp_path, "r", "--n_epochs", "1000000", "--print_freq", "1", "--num_threads", "2"),
        [number],
    )
    wait_for(process, tmp_path / "r", 10)
    os.killpg(process.pid, number)
    later = iterations_done(tmp_path / "r") + 10
    wait_for(process, tmp_path / "r", later)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert number.name not in output
    assert load_tensors(tmp_path / "r" / "state.pt")["iteration"] >= later
