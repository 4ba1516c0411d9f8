"""Jobs are exactly the specialisations that Triton's JIT compiles for an iteration's launches.

In this process Triton interprets kernels, so code that compiles runs in other processes.
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

# Set before the JIT first uses this device, because it then stores the function that compiles.
triton.compiler.compile = compile
driver.set_active(Driver())
for launch, _ in recorded:
    _launch.REGISTRY[launch.kernel].device_caches[7][0].clear()
    _launch.REGISTRY[launch.kernel].warmup(*launch.args, grid=(launch.grid,), **launch.keywords)
jit_keys = list(keys)
keys.clear()
triton.compile = compile
for _, job in recorded:
    _jobs.compile_job(job)
both = zip(recorded, keys, jit_keys, strict=True)
differ = [launch.kernel for (launch, _), key, jit_key in both if key != jit_key]
print(json.dumps([len(recorded), len({job for _, job in recorded}), len(set(jit_keys)), differ]))
"""

ALIGNMENT = """
from fastcyclegan.kernels import instance_norm

def pointers(job):
    names = [name for name, kind in job.types.items() if kind.startswith("*")]
    attributes = dict(zip(map(tuple, job.record["attrs_keys"]), job.record["attrs_vals"]))
    order = _launch.REGISTRY[job.kernel].arg_names
    return {name: bool(attributes.get((order.index(name),))) for name in names}

iteration("bf16", "auto", all_configs=True, all_forms=True)
total = sum(len(pointers(job)) for _, job in recorded)
every = [(launch.kernel, *one) for launch, job in recorded for one in pointers(job).items()]
misaligned = sorted({(kernel, name) for kernel, name, aligned in every if not aligned})
recorded.clear()
with dry_run(on_launch=lambda launch: recorded.append(_jobs.job_of(launch, 90))):
    for start in (0, 1):
        memory = torch.zeros(2 * 64 * 64 * 64 + 4)[start : start + 2 * 64 * 64 * 64]
        instance_norm(memory.view(2, 64, 64, 64), impl="triton")
print(json.dumps([total, misaligned, [pointers(job)["x_ptr"] for job in recorded]]))
"""


def test_a_job_is_what_the_jit_would_compile(tmp_path: Path) -> None:
    """For every launch of an iteration, its job has the same key in Triton's cache that the JIT would use.

    Among them are launches with strings as constants and with integers that are not multiples of 16.
    """
    launches, jobs, keys, differ = run(HASHES, tmp_path)
    assert differ == []
    assert launches > 300
    assert jobs == keys > 150


def test_jobs_have_the_alignment_of_the_memory(tmp_path: Path) -> None:
    """A job records whether the memory of each tensor is aligned to 16 bytes.

    All memory of an iteration is aligned, even stacks of scalars.
    """
    pointers, misaligned, aligned = run(ALIGNMENT, tmp_path)
    assert pointers > 1000
    assert misaligned == []
    assert aligned == [True, False]
