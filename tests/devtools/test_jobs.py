"""Kernels compiled ahead: the very specialisations that Triton's JIT makes, found by it in the cache, and what can go wrong meanwhile.

Triton is told to interpret kernels in this process, so what compiles runs in others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton")

# The launches of an iteration, and of one whose networks run apart, with the jobs that were made of them, in a list called found; and a
# driver that is no business of the product's, for an H100 that is not there.
ITERATIONS = """
import dataclasses, json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from fastcyclegan.kernel_gate import command as kernel_gate
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
        kernel_gate._step(kernel_gate.SMALL, dtype, 1, True, pairing)
"""

HASHES = """
from triton.compiler import make_backend
from triton.compiler.compiler import get_cache_key
try:
    from triton.compiler.compiler import get_cache_invalidating_env_vars
except ImportError:
    from triton._C.libtriton import get_cache_invalidating_env_vars

iteration("bf16", "auto", all_configs=True, all_forms=True)
iteration("fp32", "off")

keys = []
def compile(src, target, options, **_):
    backend = make_backend(target)
    keys.append(get_cache_key(src, backend, backend.parse_options(dict(options)), env_vars=get_cache_invalidating_env_vars()))

# Before the JIT first sees this device: it keeps the compiler that it finds then.
triton.compiler.compile = compile
driver.set_active(Driver())
for launch, _ in found:
    _launch.REGISTRY[launch.kernel].device_caches[7][0].clear()
    _launch.REGISTRY[launch.kernel].warmup(*launch.args, grid=(launch.grid,), **launch.keywords)
theirs = list(keys)
keys.clear()
triton.compile = compile
for _, job in found:
    _jobs.compile_job(job)
differ = [launch.kernel for (launch, _), mine, other in zip(found, keys, theirs, strict=True) if mine != other]
print(json.dumps([len(found), len({job for _, job in found}), len(set(theirs)), differ]))
"""

ALIGNMENT = """
from fastcyclegan.kernels import instance_norm

def pointers(job):
    names = [name for name, kind in job.types.items() if kind.startswith("*")]
    attributes = {tuple(path): value for path, value in zip(job.record["attrs_keys"], job.record["attrs_vals"])}
    order = _launch.REGISTRY[job.kernel].arg_names
    return {name: bool(attributes.get((order.index(name),))) for name in names}

iteration("bf16", "auto", all_configs=True, all_forms=True)
whole = sum(len(pointers(job)) for _, job in found)
off = sorted({(launch.kernel, name) for launch, job in found for name, aligned in pointers(job).items() if not aligned})
found.clear()
with dry_run(on_launch=lambda launch: found.append(_jobs.job_of(launch, 90))):
    for start in (0, 1):
        instance_norm(torch.zeros(2 * 64 * 64 * 64 + 4)[start : start + 2 * 64 * 64 * 64].view(2, 64, 64, 64), impl="triton")
print(json.dumps([whole, off, [pointers(job)["x_ptr"] for job in found ]]))
"""

CACHE = """
from fastcyclegan.devtools.jobs import Job

iteration("bf16", "auto")
by_kernel = {launch.kernel: (launch, job) for launch, job in found}
quick = ("_instance_norm_stats_kernel", "_reflect_conv_wgrad_sum_kernel", "_instance_norm_bwd_sums_kernel")
launches, jobs = zip(*(by_kernel[name] for name in quick))
wrong = dataclasses.replace(jobs[0], data=jobs[0].data.replace('"*bf16"', '"*nonsense"'))
before = [_jobs.is_compiled(job) for job in jobs]
told = []
outcome = _ahead.compile_ahead([*jobs, wrong], lambda done, total: told.append([done, total]), 2)
after = _ahead.missing(jobs)

hits = []
triton.knobs.compilation.listener = lambda **heard: hits.append(heard["cache_hit"])
driver.set_active(Driver())
for launch in launches:
    _launch.REGISTRY[launch.kernel].warmup(*launch.args, grid=(launch.grid,), **launch.keywords)
print(json.dumps([before, told, dataclasses.astuple(outcome), len(after), hits]))
"""

DEATH = """
import os, pathlib, signal
iteration("bf16", "auto")
jobs = list({job for _, job in found})[:8]
def kill(done, total):
    for entry in pathlib.Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            if b"compile_worker" in command and command.split(b"\\0")[-2] == str(os.getpid()).encode():
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ValueError):
            pass
outcome = _ahead.compile_ahead(jobs, kill, 2)
print(json.dumps([outcome.compiled < len(jobs), [kernel for kernel, _ in outcome.failures]]))
"""


def run(code: str, cache: Path) -> Any:
    """Run ``code`` where Triton compiles, with a cache of its own, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", ITERATIONS + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_job_is_what_the_jit_would_compile(tmp_path: Path) -> None:
    """Every launch of an iteration, by the key of Triton's cache: with strings for constants and integers that 16 does not divide."""
    launches, jobs, keys, differ = run(HASHES, tmp_path)
    assert differ == []
    assert launches > 300
    assert jobs == keys > 150


def test_jobs_have_the_alignment_of_the_memory(tmp_path: Path) -> None:
    """All that an iteration reads and writes begins at a multiple of 16 bytes, stacks of single numbers too; what does not, shows."""
    pointers, off, aligned = run(ALIGNMENT, tmp_path)
    assert pointers > 1000
    assert off == []
    assert aligned == [True, False]


def test_what_is_compiled_ahead_is_found_by_the_jit(tmp_path: Path) -> None:
    before, told, (compiled, processes, _, failures), missing, hits = run(CACHE, tmp_path)
    assert before == [False] * 3
    assert [done for done, _ in told] == [0, 1, 2, 3, 4]
    assert (compiled, processes, missing) == (3, 2, 0)
    # What does not compile is named, and hinders nothing else.
    assert [kernel for kernel, _ in failures] == ["_instance_norm_stats_kernel"]
    assert hits == [True] * 3


def test_a_compiler_that_is_killed_is_reported(tmp_path: Path) -> None:
    assert run(DEATH, tmp_path) == [True, [""]]
