"""After a signal, a training process saves its files and ends, unless it was started to ignore the signal."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fastcyclegan import CycleGAN, cli
from fastcyclegan.data import dali_loader
from fastcyclegan.data.loader import Source
from fastcyclegan.errors import UserError
from fastcyclegan.tensor_files import load_tensors
from fastcyclegan.training import resume, start
from fastcyclegan.training.signals import as_interrupts, nothing_to_save
from fastcyclegan.training.trainer import Trainer
from tests.training.runs import arguments, assert_same_state, iterations_logged, run, start_process


def wait_for(process: subprocess.Popen[str], folder: Path, iteration: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and iterations_logged(folder) < iteration and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_signal_saves_and_ends_the_run(dataset: Path, tmp_path: Path, uninterrupted: Path) -> None:
    """test_kills.py sends all signals, at random moments."""
    number = signal.SIGTERM
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


def test_sigusr1_saves_and_the_run_continues(dataset: Path, tmp_path: Path) -> None:
    """A job queue sends it to all processes of a job some time before it ends them."""
    args = arguments(dataset, tmp_path, "r", "--max_iters", "150", "--print_freq", "1", "--num_threads", "2")
    process = start_process([*args, "--loader", "folder"])
    state = tmp_path / "r" / "state.pt"
    wait_for(process, tmp_path / "r", 5)
    assert not state.exists()
    os.killpg(process.pid, signal.SIGUSR1)
    deadline = time.monotonic() + 60
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    saved = load_tensors(state)["iteration"]
    assert 5 <= saved < 150
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "SIGUSR1: saving after this iteration" in output
    assert re.search(r"^saved after iteration \d+, as requested by SIGUSR1$", output, re.MULTILINE)
    assert "Traceback" not in output
    assert load_tensors(state)["iteration"] == 150


@pytest.mark.parametrize(("moment", "number"), [
    ("choose", signal.SIGINT),
    ("find_images", signal.SIGTERM),
    ("make_loader", signal.SIGHUP),
    ("describe_run", signal.SIGINT),
    ("restore_state", signal.SIGTERM),
])  # fmt: skip
def test_a_signal_during_the_start_ends_it_and_changes_nothing(
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    moment: str,
    number: signal.Signals,
) -> None:
    """The handlers are set before anything else happens. A signal is never lost, and never raises."""
    args = arguments(dataset, tmp_path, "r", "--max_iters", "3")
    if moment == "restore_state":
        assert cli.train(args) == 0
        args += ["--continue_train", "--max_iters", "9"]
    before = {path: path.read_bytes() for path in tmp_path.glob("r/*") if path.is_file()}
    module = resume if moment == "restore_state" else start
    call = getattr(module, moment)

    def interrupted(*values: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        return call(*values, **options)

    monkeypatch.setattr(module, moment, interrupted)
    capsys.readouterr()
    with default_handler(number) as handler:
        assert cli.train(args) == 128 + number
        assert signal.getsignal(number) == handler
    assert capsys.readouterr().out.splitlines()[-1] == "stopped before the first iteration"
    assert {path: path.read_bytes() for path in tmp_path.glob("r/*") if path.is_file()} == before
    assert bool(before) == (tmp_path / "r").exists()


def test_signals_where_there_is_nothing_to_save() -> None:
    """Only default handlers are replaced, and they are there again afterwards."""
    with default_handler(signal.SIGINT) as sigint, default_handler(signal.SIGUSR1) as sigusr1:
        with nothing_to_save():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
            os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGINT) is sigint
        assert signal.getsignal(signal.SIGUSR1) is sigusr1
        for ignored in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(ignored, signal.SIG_IGN)
        with nothing_to_save():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    with ThreadPoolExecutor() as pool:
        assert pool.submit(nothing_to_save().__enter__).result() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_interrupts(number: signal.Signals) -> None:
    """Afterwards, its handler is the default one again. A second signal ends the process in any case."""
    with contextlib.ExitStack() as stack:
        names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = {name: stack.enter_context(default_handler(name)) for name in names}
        with as_interrupts() as requests:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
            assert requests.stop == number
            assert {signal.getsignal(name) for name in names} == {signal.SIG_DFL}
        assert {name: signal.getsignal(name) for name in names} == handlers


def test_signals_that_are_handled_or_ignored_already_do_not_interrupt() -> None:
    with default_handler(signal.SIGTERM), default_handler(signal.SIGHUP):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, print)
        with as_interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is print
    with ThreadPoolExecutor() as pool:
        assert pool.submit(as_interrupts().__enter__).result().stop is None


@contextlib.contextmanager
def default_handler(number: signal.Signals) -> Iterator[Any]:
    """Handle the signal ``number`` as a new process would, however the tests were started."""
    handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, handler)
    try:
        yield handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("loader", ["folder", "dali"])
def test_a_wait_for_images_ends_when_a_stop_is_requested(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    """An image that is never delivered, as on a network disk that is gone, does not make the run deaf."""
    args = arguments(dataset, tmp_path, "r", "--loader", loader, "--num_threads", "2", "--print_freq", "1")
    never, calls, after_step = threading.Event(), itertools.count(), Trainer._after_step

    def hanging(call: Callable[..., Any], after: int) -> Callable[..., Any]:
        def hang(*values: Any) -> Any:
            if next(calls) >= after:
                never.wait(100)
            return call(*values)

        return hang

    def stop(self: Trainer, epoch: int, images: int) -> None:
        after_step(self, epoch, images)
        if self.run.iteration == 3:
            threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()

    monkeypatch.setattr(Trainer, "_after_step", stop)
    # Each process of the folder loader counts its own images. The thread of the other loader reads ahead.
    monkeypatch.setattr(Source, "view", hanging(Source.view, after=10))
    monkeypatch.setattr(dali_loader, "parses", hanging(dali_loader.parses, after=60))
    monkeypatch.setattr(dali_loader, "BLOCK", 4)
    started = time.monotonic()
    try:
        with default_handler(signal.SIGTERM):
            assert cli.train(args) == 128 + signal.SIGTERM
    finally:
        never.set()
    assert time.monotonic() - started < 60
    saved = load_tensors(tmp_path / "r" / "state.pt")["iteration"]
    assert saved == iterations_logged(tmp_path / "r") >= 3


@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_processes_of_a_launcher_are_refused(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rank: str,
) -> None:
    """torchrun starts the same command several times. Only one process prints the reason."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    args = arguments(dataset, tmp_path, "r", "--max_iters", "1")
    for name, value in {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)
    assert cli.train(args) == 2
    message = "error: a run uses one process and one GPU, but a launcher such as torchrun started 2 processes"
    assert capsys.readouterr().err.startswith(message) == (rank == "0")
    assert not (tmp_path / "r").exists()
    with pytest.raises(UserError, match="started 2 processes"):
        CycleGAN(netG="resnet_0blocks", netD="pixel", ngf=2, ndf=2).fit(dataset, crop_size=16, load_size=16)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert cli.train(args) == 0
