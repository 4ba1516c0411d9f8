"""Jobs: the very specialisations that Triton's JIT makes of an iteration's launches.

Triton is told to interpret kernels in this process, so what compiles runs in others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.devtools.iterations import run

pytest.importorskip("triton")

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
    variables = get_cache_invalidating_env_vars()
    keys.append(get_cache_key(src, backend, backend.parse_options(dict(options)), env_vars=variables))

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
both = zip(found, keys, theirs, strict=True)
differ = [launch.kernel for (launch, _), mine, other in both if mine != other]
print(json.dumps([len(found), len({job for _, job in found}), len(set(theirs)), differ]))
"""

ALIGNMENT = """
from fastcyclegan.kernels import instance_norm

def pointers(job):
    names = [name for name, kind in job.types.items() if kind.startswith("*")]
    attributes = dict(zip(map(tuple, job.record["attrs_keys"]), job.record["attrs_vals"]))
    order = _launch.REGISTRY[job.kernel].arg_names
    return {name: bool(attributes.get((order.index(name),))) for name in names}

iteration("bf16", "auto", all_configs=True, all_forms=True)
whole = sum(len(pointers(job)) for _, job in found)
every = [(launch.kernel, *one) for launch, job in found for one in pointers(job).items()]
off = sorted({(kernel, name) for kernel, name, aligned in every if not aligned})
found.clear()
with dry_run(on_launch=lambda launch: found.append(_jobs.job_of(launch, 90))):
    for start in (0, 1):
        memory = torch.zeros(2 * 64 * 64 * 64 + 4)[start : start + 2 * 64 * 64 * 64]
        instance_norm(memory.view(2, 64, 64, 64), impl="triton")
print(json.dumps([whole, off, [pointers(job)["x_ptr"] for job in found ]]))
"""


def test_a_job_is_what_the_jit_would_compile(tmp_path: Path) -> None:
    """Every launch of an iteration, by the key of Triton's cache: with strings for constants and integers
    that 16 does not divide.
    """
    launches, jobs, keys, differ = run(HASHES, tmp_path)
    assert differ == []
    assert launches > 300
    assert jobs == keys > 150


def test_jobs_have_the_alignment_of_the_memory(tmp_path: Path) -> None:
    """All that an iteration reads and writes begins at a multiple of 16 bytes, stacks of single numbers too;
    what does not, shows.
    """
    pointers, off, aligned = run(ALIGNMENT, tmp_path)
    assert pointers > 1000
    assert off == []
    assert aligned == [True, False]
