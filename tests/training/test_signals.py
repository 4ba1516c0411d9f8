"""After a signal, a training process saves its files and ends, unless it was started to ignore the signal."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fastcyclegan.tensor_files import load_tensors
from tests.training.runs import arguments, assert_same_state, iterations_logged, run, start_process


def wait_for(process: subprocess.Popen[str], folder: Path, iteration: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and iterations_logged(folder) < iteration and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_ends_the_run(
    dataset: Path, tmp_path: Path, uninterrupted: Path, number: signal.Signals
) -> None:
    args = arguments(dataset, tmp_path, "r", "--max_iters", "150", "--print_freq", "1", "--num_threads", "2")
    process = start_process(args)
    wait_for(process, tmp_path / "r", 10)
    # The signal goes to the whole process group, as it does from a terminal, timeout or a job queue. The
    # loader's processes must survive it.
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert f"{number.name}: saving after this iteration" in output
    assert "Traceback" not in output
    assert "resume with --continue_train --name r" in output
    iteration = load_tensors(tmp_path / "r" / "state.pt")["iteration"]
    assert 10 <= iteration < 150
    run(dataset, tmp_path, "r", "--continue_train")
    assert_same_state(uninterrupted, tmp_path / "r")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=["nohup", "background script"])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    dataset: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A run under nohup outlives its terminal, and a background run ignores keys pressed there.

    SIGTERM still ends both.
    """
    process = start_process(
        arguments(dataset, tmp_path, "r", "--n_epochs", "1000000", "--print_freq", "1", "--num_threads", "2"),
        [number],
    )
    wait_for(process, tmp_path / "r", 10)
    os.killpg(process.pid, number)
    later = iterations_logged(tmp_path / "r") + 10
    wait_for(process, tmp_path / "r", later)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert number.name not in output
    assert load_tensors(tmp_path / "r" / "state.pt")["iteration"] >= later
