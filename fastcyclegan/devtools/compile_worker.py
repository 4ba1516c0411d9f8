"""Compile kernels in separate processes: python -m fastcyclegan.devtools.compile_worker PROCESSES PARENT

The program reads the jobs from standard input, as a JSON list of [kernel, capability, data]. For each
finished job it prints a JSON line with the job's number, the seconds it took, and the error message or "".

This is a separate program because processes forked from a training process would share its CUDA context and
threads, and spawned ones would run the user's script again. Here one process imports everything and forks
before any thread exists. When process PARENT, which started the program, ends, all its processes end too.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time

from fastcyclegan.devtools.jobs import Job, build_launcher, compile_job
from fastcyclegan.kernels import every_kernel  # noqa: F401


def die_with(parent: int) -> None:
    """Make Linux kill this process when process ``parent`` ends for any reason, and make it ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent has already ended


def run(numbered: tuple[int, Job]) -> tuple[int, float, str]:
    number, job = numbered
    started = time.perf_counter()
    try:
        build_launcher(compile_job(job))
        error = ""
    # The compiler can raise anything. The launch will run into the same error and report it.
    except Exception as failure:
        error = " ".join(f"{type(failure).__name__}: {failure}".split())[:500]
    return number, time.perf_counter() - started, error


def main() -> None:
    die_with(int(sys.argv[2]))
    jobs = [Job(*job) for job in json.load(sys.stdin)]
    context = multiprocessing.get_context("fork")
    with context.Pool(int(sys.argv[1]), die_with, (os.getpid(),)) as pool:
        for result in pool.imap_unordered(run, enumerate(jobs)):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
