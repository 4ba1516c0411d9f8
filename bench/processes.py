"""Run one process with a time limit.

Its output is written to disk immediately, and none of the processes that it started outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.machine import ROOT

# Seconds for a process to end after SIGINT, before it is killed.
GRACE = 4.0
LONGEST_OUTPUT = 400_000
PR_SET_PDEATHSIG = 1
# Loaded in advance, because as little as possible should happen between fork and exec.
_LIBC = None
if sys.platform == "linux":
    _LIBC = ctypes.CDLL(None)


@dataclass
class ProcessResult:
    """The result of a process.

    ``status`` is its exit status, which is negative if a signal ended it. ``timed_out`` is true if it reached
    its time limit.
    """

    status: int
    seconds: float
    timed_out: bool
    output: str


def run_process(
    command: Sequence[str], seconds: float, environment: dict[str, str], log: Path
) -> ProcessResult:
    """Run ``command`` in the checkout for at most ``seconds``, and return its result.

    Its output is appended to ``log`` as it is printed. Afterwards all processes that it started are killed.
    """
    started = time.monotonic()
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_the_parent,
        )
        timed_out = False
        try:
            process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            timed_out = True
            # After SIGINT, pytest reports the failures so far.
            _signal(process, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            _signal(process, signal.SIGKILL)
            # A process that is stuck in the driver does not even react to SIGKILL; it is left behind.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - LONGEST_OUTPUT))
        output = file.read().decode(errors="replace")
    status = process.returncode
    if status is None:
        status = -signal.SIGKILL
    return ProcessResult(status, time.monotonic() - started, timed_out, output)


def _die_with_the_parent() -> None:
    """Have this process killed when its parent ends.

    Otherwise it could keep the GPU busy after the parent was killed.
    """
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def ending_of(result: ProcessResult, seconds: float) -> str:
    """Return how a process ended, or "" if it succeeded."""
    if result.timed_out:
        return f"stopped at its time limit of {seconds:.0f} s"
    if result.status < 0:
        return f"killed by {signal.Signals(-result.status).name}"
    if result.status:
        return f"exit code {result.status}"
    return ""
