"""Compiles kernels in processes of its own: python -m fastcyclegan.devtools.compile_worker PROCESSES

Reads jobs from standard input, a JSON list of [kernel, capability, data], and prints a line of JSON for each
that is done: its number, the seconds it took, and what went wrong or "". It is a program of its own because
processes that were forked from one that trains would share CUDA and threads with it, and processes that were
spawned from it would run the user's script again. Here one process imports everything and forks before there
is a thread. All end with the process that started them.
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
    """Have the system end this process when ``parent`` ends, however it does (Linux), and leave Ctrl-C to
    that one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended before


def run(numbered: tuple[int, Job]) -> tuple[int, float, str]:
    number, job = numbered
    started = time.perf_counter()
    try:
        build_launcher(compile_job(job))
        error = ""
    # Whatever the compiler raises: the launch will meet it again, and names it.
    except Exception as failure:
        error = " ".join(f"{type(failure).__name__}: {failure}".split())[:500]
    return number, time.perf_counter() - started, error


def main() -> None:
    die_with(int(sys.argv[2]))
    jobs = [Job(*job) for job in json.load(sys.stdin)]
    context = multiprocessing.get_context("fork")
    with context.Pool(int(sys.argv[1]), die_with, (os.getpid(),)) as pool:
        for done in pool.imap_unordered(run, enumerate(jobs)):
            print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
