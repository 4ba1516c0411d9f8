"""One process with a limit: its output is on the disk as it comes, and nothing that it started outlives
it."""

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

# Seconds for a process that is asked to end.
GRACE = 4.0
LONGEST_OUTPUT = 400_000
PR_SET_PDEATHSIG = 1
# Loaded beforehand: between fork and exec as little as possible may happen.
_LIBC = None
if sys.platform == "linux":
    _LIBC = ctypes.CDLL(None)


@dataclass
class Ended:
    """How a process ended: its exit status (negative: the signal), its seconds, whether its limit ended it,
    and what it printed.
    """

    status: int
    seconds: float
    timed_out: bool
    output: str


def run_process(command: Sequence[str], seconds: float, environment: dict[str, str], log: Path) -> Ended:
    """Run ``command`` in the checkout for at most ``seconds``; nothing of it outlives that. Its output goes
    to ``log``, as it comes.
    """
    began = time.monotonic()
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
            # pytest then says what failed so far.
            _signal(process, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            _signal(process, signal.SIGKILL)
            # A process that is stuck in the driver hears not even that; it is left behind.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - LONGEST_OUTPUT))
        output = file.read().decode(errors="replace")
    status = process.returncode
    if status is None:
        status = -signal.SIGKILL
    return Ended(status, time.monotonic() - began, timed_out, output)


def _die_with_the_parent() -> None:
    """Let this process be killed when the one that started it is: else it would hold the GPU after a call
    that was ended from outside.
    """
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def ending_of(ended: Ended, seconds: float) -> str:
    """Return how a process ended, "" where it ended well."""
    if ended.timed_out:
        return f"ended at its limit of {seconds:.0f} s"
    if ended.status < 0:
        return f"killed by {signal.Signals(-ended.status).name}"
    if ended.status:
        return f"exit code {ended.status}"
    return ""
