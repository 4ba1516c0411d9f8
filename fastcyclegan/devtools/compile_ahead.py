"""Compile kernels into Triton's cache on disk before they are launched, with one process per core."""

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

# Measured on one core of an AMD EPYC (Zen 4) with Triton 3.7.1: 52 s for the 188 kernels of a training step,
# and 2 s to import torch and Triton.
SECONDS_PER_KERNEL, SECONDS_TO_START = 0.28, 2.0
# If fewer kernels than this are missing, they are compiled when they are launched, because starting processes
# would take longer.
MIN_JOBS = 8

Progress = Callable[[int, int], object]


def lock_file() -> Path:
    """Return the file that a process locks while it compiles ahead."""
    return cache_folder("compiling") / "lock"


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Keep other processes of this user from compiling ahead while the block runs.

    This prevents processes that start together from compiling the same kernels. If the file cannot be locked,
    the block runs without waiting. If a process dies, its lock is released.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            lock_file().parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(lock_file().open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Outcome:
    """The result of ``compile_ahead``.

    ``compiled`` jobs were compiled by ``processes`` processes, which took ``seconds`` seconds. ``failures``
    contains a kernel's name and the error message for each job that failed.
    """

    compiled: int
    processes: int
    seconds: float
    failures: tuple[tuple[str, str], ...] = ()


def missing(jobs: Sequence[Job]) -> list[Job]:
    """Return the ``jobs`` that are not in Triton's cache."""
    return [job for job in jobs if not is_compiled(job)]


def processes_for(jobs: int) -> int:
    """Return the number of processes for ``jobs`` jobs: at most one per core available to this process."""
    return max(1, min(jobs, len(os.sched_getaffinity(0))))


def predicted_seconds(jobs: int, processes: int) -> float:
    """Return the estimated number of seconds that ``processes`` processes take to compile ``jobs`` jobs."""
    return SECONDS_TO_START + SECONDS_PER_KERNEL * -(-jobs // processes)


def compile_ahead(
    jobs: Sequence[Job], progress: Progress = lambda finished, total: None, processes: int | None = None
) -> Outcome:
    """Compile ``jobs`` into Triton's cache, and call ``progress(finished, total)`` after each.

    Jobs that do not compile are listed in the outcome's failures. If the processes end early, that is listed
    there as well, with "" in place of a kernel's name.
    """
    if not jobs:
        return Outcome(0, 0, 0.0)
    if processes is None:
        processes = processes_for(len(jobs))
    started, failures, finished = time.perf_counter(), [], 0
    # Files, because a pipe that is not being read would fill up and block.
    with tempfile.TemporaryFile("w+") as requests, tempfile.TemporaryFile("w+") as errors:
        json.dump([[job.kernel, job.capability, job.data] for job in jobs], requests)
        requests.seek(0)
        with _worker(processes, requests, errors) as lines:
            progress(0, len(jobs))
            for line in lines:
                try:
                    number, _, error = json.loads(line)
                except ValueError:
                    continue  # printed by a library when it was imported
                finished += 1
                if error:
                    failures.append((jobs[number].kernel, error))
                progress(finished, len(jobs))
        errors.seek(0)
        logged = errors.read().strip().splitlines()
    compiled = finished - len(failures)
    if finished < len(jobs):
        reason = "its processes ended early"
        if logged:
            reason = logged[-1]
        failures.append(("", reason))
    return Outcome(compiled, processes, time.perf_counter() - started, tuple(failures))


@contextlib.contextmanager
def _worker(processes: int, requests: IO[str], errors: IO[str]) -> Iterator[IO[str]]:
    """Start the worker program and yield the stream of lines that it prints.

    When the block ends, the worker and all its processes are killed.
    """
    command = [sys.executable, "-m", f"{__package__}.compile_worker", str(processes), str(os.getpid())]
    # The worker imports from the same folders as this process.
    folders = [str(Path(path).absolute()) for path in sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    # The worker gets a separate session, so that Ctrl-C in the terminal reaches only this process.
    pipes: dict[str, Any] = {"stdin": requests, "stdout": subprocess.PIPE, "stderr": errors}
    worker = subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)
    assert worker.stdout is not None
    try:
        with worker.stdout:
            yield worker.stdout
    finally:
        # Kill the worker's whole session, even if the worker itself has already ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
