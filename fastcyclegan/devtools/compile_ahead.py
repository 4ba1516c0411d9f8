"""Kernels compiled before the launch that needs them, in as many processes as there are cores, into Triton's
cache on disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastcyclegan.devtools.jobs import Job, is_compiled
from fastcyclegan.kernels._cache import cache_folder

# Counted on one core of an AMD EPYC (Zen 4) with Triton 3.7.1: 188 kernels of a training step in 52 s, 2 s to
# import torch and Triton.
SECONDS_A_KERNEL, SECONDS_TO_START = 0.28, 2.0
# With fewer to compile than this the launches do it: it takes less time than the processes take to start.
FEWEST = 8

Progress = Callable[[int, int], object]


def lock_file() -> Path:
    return cache_folder("compiling") / "lock"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let no other process of this user compile ahead inside the block, so that several that start together
    do not compile the same.

    Where files cannot be locked nobody is waited for. The lock of a process that died is free.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            lock_file().parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock_file().open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Outcome:
    """What became of the jobs: how many were compiled, in how many processes and seconds, and what failed, by
    kernel.
    """

    compiled: int
    processes: int
    seconds: float
    failures: tuple[tuple[str, str], ...] = ()


def missing(jobs: Sequence[Job]) -> list[Job]:
    """Return the ``jobs`` that Triton's cache lacks."""
    return [job for job in jobs if not is_compiled(job)]


def processes_for(jobs: int) -> int:
    """Return how many processes compile so many jobs: one a core that this process may use."""
    return max(1, min(jobs, len(os.sched_getaffinity(0))))


def predicted_seconds(jobs: int, processes: int) -> float:
    """Return how long ``jobs`` take to compile, by the constants above."""
    return SECONDS_TO_START + SECONDS_A_KERNEL * -(-jobs // processes)


def compile_ahead(
    jobs: Sequence[Job], progress: Progress = lambda done, total: None, processes: int | None = None
) -> Outcome:
    """Compile ``jobs`` and tell ``progress`` of each that is done.

    A job that fails to compile is among the outcome's failures, and so is, under "", a worker that ended
    early.
    """
    if not jobs:
        return Outcome(0, 0, 0.0)
    if processes is None:
        processes = processes_for(len(jobs))
    started, failures, done = time.perf_counter(), [], 0
    # Files, so that no pipe fills up while nobody reads it.
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as complaints:
        json.dump([[job.kernel, job.capability, job.data] for job in jobs], given)
        given.seek(0)
        with _worker(processes, given, complaints) as lines:
            progress(0, len(jobs))
            for line in lines:
                try:
                    number, _, error = json.loads(line)
                except ValueError:
                    continue  # what a library prints when it is imported
                done += 1
                if error:
                    failures.append((jobs[number].kernel, error))
                progress(done, len(jobs))
        complaints.seek(0)
        logged = complaints.read().strip().splitlines()
    good = done - len(failures)
    if done < len(jobs):
        reason = "its processes were ended"
        if logged:
            reason = logged[-1]
        failures.append(("", reason))
    return Outcome(good, processes, time.perf_counter() - started, tuple(failures))


@contextlib.contextmanager
def _worker(processes: int, given: IO[str], complaints: IO[str]) -> Iterator[IO[str]]:
    """Start the program that compiles and yield the lines that it prints; leaving the block ends it and all
    its processes.
    """
    command = [sys.executable, "-m", f"{__package__}.compile_worker", str(processes), str(os.getpid())]
    # What this process imports from, the worker does too.
    folders = [str(Path(path).absolute()) for path in sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    # In a session of its own: Ctrl-C in the terminal is this process's business.
    pipes: dict[str, Any] = {"stdin": given, "stdout": subprocess.PIPE, "stderr": complaints}
    worker = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
    assert worker.stdout is not None
    try:
        with worker.stdout:
            yield worker.stdout
    finally:
        # Its session, whether or not the first of it has ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
