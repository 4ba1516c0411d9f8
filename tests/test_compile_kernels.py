"""The ahead-of-time gate: that it sees what it is there for. What ships is compiled by scripts/compile_kernels.py itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("triton")

# A registry with one good kernel and one for each fault, compiled as the real ones are.
CODE = """
import json, sys
from dataclasses import asdict
import torch, triton, triton.language as tl
from fastcyclegan import compile_kernels as ck
from fastcyclegan.kernels import _launch, instance_norm_launch
from fastcyclegan.kernels._math import load_tile, store_tile
from fastcyclegan.kernels.zero_conv_triton import load_taps

@_launch.kernel
@triton.jit
def copy(x_ptr, y_ptr, C, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr):
    rows, offs_c = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_C)
    mask_s, mask_c = rows < BLOCK_S, offs_c < C
    store_tile(y_ptr, rows, mask_s, offs_c, mask_c, C, load_tile(x_ptr, rows, mask_s, offs_c, mask_c, C))

@_launch.kernel
@triton.jit
def product(x_ptr, y_ptr, C, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    offs = tl.arange(0, BLOCK)[:, None] * C + tl.arange(0, BLOCK)[None, :]
    x = tl.load(x_ptr + offs)
    tl.store(y_ptr + offs, tl.dot(x, x, input_precision=PRECISION).to(y_ptr.dtype.element_ty))

@_launch.kernel
@triton.jit
def taps(x_ptr, y_ptr, W, XS: tl.constexpr, BLOCK: tl.constexpr):
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)
    end = W + j // 8
    tile = load_taps(x_ptr, W, W, i, (j // 8)[None, :], j % 8, end, end, W, XS)
    tl.store(y_ptr + i * BLOCK + j[None, :], tile)

def job(kernel, kind, c, warps=4, **constants):
    types = (("x_ptr", f"*{kind}:16"), ("y_ptr", f"*{kind}:16"), ("W" if kernel == "taps" else "C", c))
    return ck.Job(kernel, types, tuple(constants.items()), warps, 1)

jobs = [
    job("copy", "bf16", "i32:16", BLOCK_S=64, BLOCK_C=32),
    job("copy", "bf16", "i32", BLOCK_S=64, BLOCK_C=32),
    job("copy", "fp32", "i32:16", 1, BLOCK_S=512, BLOCK_C=64),
    job("product", "bf16", "i32:16", BLOCK=64, PRECISION="ieee"),
    job("product", "fp32", "i32:16", BLOCK=64, PRECISION="tf32"),
    job("product", "fp32", "i32:16", BLOCK=32, PRECISION="ieee"),
    job("taps", "bf16", "i32", XS=8, BLOCK=64),
    job("taps", "bf16", "i32", XS=12, BLOCK=64),
]
if __name__ == "__main__":
    print(json.dumps([asdict(r) for r in ck.reports({"sm_80": jobs, "sm_90": jobs}, processes=1)]))
    ck.ARCHS["sm_80"] = ck.Arch(80, 1000, 2000)
    print(json.dumps([asdict(r) for r in ck.reports({"sm_80": jobs[3:4]}, processes=1)]))
"""


def run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


def test_each_fault_is_found(tmp_path: Path) -> None:
    import json

    script = tmp_path / "registry.py"
    script.write_text(CODE)
    done = run([str(script)])
    assert done.returncode == 0, done.stderr
    reports, starved = map(json.loads, done.stdout.splitlines())
    for arch, instruction in (("sm_80", "HMMA"), ("sm_90", "HGMMA")):
        good, narrow, spilled, product, tf32, ieee, wide_taps, narrow_taps = (r for r in reports if r["arch"] == arch)
        assert good["faults"] == []
        assert good["instructions"]["loads16"] == 2
        assert re.fullmatch(r"\d+ tile loads or stores of less than 16 bytes", *narrow["faults"])
        assert "spills" in spilled["faults"][0]
        assert product["instructions"][instruction] > 0
        assert tf32["faults"] == product["faults"] == []
        # An fp32 product in IEEE arithmetic has no matrix instruction, and none is asked for.
        assert ieee["faults"] == []
        assert ieee["instructions"][instruction] == 0
        # What a weight gradient reads of a strided picture has a loader of its own.
        assert wide_taps["faults"] == []
        assert re.fullmatch(r"\d+ tile loads or stores of less than 16 bytes", *narrow_taps["faults"])
    assert "bytes of shared memory, the chip has 1000" in starved[0]["faults"][0]


def test_a_kernel_that_nothing_launches_is_an_error() -> None:
    code = "import triton; from fastcyclegan import compile_kernels as ck; from fastcyclegan.kernels import _launch\n"
    code += "def forgotten(x): pass\n_launch.REGISTRY['forgotten'] = None; ck.shipped_jobs([])"
    done = run(["-c", code])
    assert "nothing here launches" in done.stderr
    assert "forgotten" in done.stderr


def test_interpreted_kernels_are_refused(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr


def test_the_command_writes_what_it_is_asked_for(tmp_path: Path) -> None:
    """One architecture and one dtype of one kernel's worth: --json and --out, and every kernel of the registry in the table."""
    code = "import sys; from fastcyclegan import compile_kernels as ck\n"
    code += "full = ck.shipped_jobs; ck.shipped_jobs = lambda *a: list({j.kernel: j for j in full(*a)}.values())\n"
    code += "if __name__ == '__main__': sys.exit(ck.main())"
    script = tmp_path / "short.py"
    script.write_text(code)
    options = ["--arch", "sm_90", "--dtype", "bf16", "--json", str(tmp_path / "r.json"), "--out", str(tmp_path / "cubins")]
    done = run([str(script), *options])
    assert done.returncode == 0, done.stdout + done.stderr
    sources = "".join(path.read_text() for path in (ROOT / "kernels").glob("*_triton.py"))
    kernels = sorted(re.findall(r"^@kernel\n.*\ndef _(\w+)", sources, re.MULTILINE))
    assert sorted(re.findall(r"^sm_90 +(\w+) ", done.stdout, re.MULTILINE)) == kernels
    assert len(list((tmp_path / "cubins").glob("*.cubin"))) == len(kernels)
    assert f"all {len(kernels)} pass" in done.stdout
