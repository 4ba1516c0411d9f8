"""Run test code in a process in which Triton compiles kernels.

The code can record the launches and jobs of training iterations.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.devtools.compiling import ROOT

# Defines ``iteration``, which appends each launch of an iteration and its job to the list ``recorded``, and a
# driver for an absent H100 that is independent of the stand-in in fastcyclegan/devtools/jobs.py.
ITERATIONS = """
import dataclasses, json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from fastcyclegan.kernel_gate import shipped
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.kernels import _launch
from fastcyclegan.devtools import compile_ahead
from fastcyclegan.devtools import jobs as _jobs

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 7
    def get_current_stream(self, device): return 0

recorded = []
def iteration(dtype, pairing, **options):
    record = lambda launch: recorded.append((launch, _jobs.job_of(launch, 90)))
    with dry_run(on_launch=record, **options):
        shipped._step(shipped.SMALL, dtype, 1, True, pairing)
"""


def run(code: str, cache: Path) -> Any:
    """Run ``code`` in a process in which Triton compiles kernels and has its cache in the folder ``cache``.

    Returns the last line of the output, parsed as JSON.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(cache)
    }
    command = [sys.executable, "-c", ITERATIONS + code]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])
