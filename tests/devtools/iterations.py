"""The launches of a training iteration and the jobs made of them, in a process of its own in which Triton
compiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.devtools.compiling import ROOT

# The launches of an iteration, and of one whose networks run apart, with the jobs that were made of them, in
# a list called found; and a driver that is no business of the product's, for an H100 that is not there.
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

found = []
def iteration(dtype, pairing, **options):
    hear = lambda launch: found.append((launch, _jobs.job_of(launch, 90)))
    with dry_run(on_launch=hear, **options):
        shipped._step(shipped.SMALL, dtype, 1, True, pairing)
"""


def run(code: str, cache: Path) -> Any:
    """Run ``code`` where Triton compiles, with a cache of its own, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(cache)
    }
    command = [sys.executable, "-c", ITERATIONS + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
