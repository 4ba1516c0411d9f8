"""Every fault that the kernel gate checks for is detected in the reports on compiled kernels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.devtools.compiling import run

pytest.importorskip("triton")

# Launches of test kernels, some without faults and one with each fault. They are compiled in the same way as
# the real kernels.
CODE = """
import json, sys
from dataclasses import asdict
import torch, triton, triton.language as tl
from fastcyclegan.devtools import compile_kernels as ck
from fastcyclegan.kernels import _launch
from fastcyclegan.devtools import jobs as _jobs
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

def job(capability, kernel, dtype, c, warps=4, **constants):
    x, y = (torch.zeros(4096, dtype=dtype) for _ in range(2))
    launch = _launch.Launch(kernel, 1, (x, y, c), constants, _launch.Config((), warps))
    return _jobs.job_of(launch, capability)

def jobs(capability):
    return [
        job(capability, "copy", torch.bfloat16, 32, BLOCK_S=64, BLOCK_C=32),
        job(capability, "copy", torch.bfloat16, 33, BLOCK_S=64, BLOCK_C=32),
        job(capability, "copy", torch.float32, 32, 1, BLOCK_S=512, BLOCK_C=64),
        job(capability, "product", torch.bfloat16, 32, BLOCK=64, PRECISION="ieee"),
        job(capability, "product", torch.float32, 32, BLOCK=64, PRECISION="tf32"),
        job(capability, "product", torch.float32, 32, BLOCK=32, PRECISION="ieee"),
        job(capability, "taps", torch.bfloat16, 33, XS=8, BLOCK=64),
        job(capability, "taps", torch.bfloat16, 33, XS=12, BLOCK=64),
    ]

if __name__ == "__main__":
    print(json.dumps([asdict(r) for r in ck.reports({"sm_80": jobs(80), "sm_90": jobs(90)}, processes=1)]))
    ck.ARCHS["sm_80"] = ck.Arch(_launch.Chip(80), 1000, 2000)
    print(json.dumps([asdict(r) for r in ck.reports({"sm_80": jobs(80)[3:4]}, processes=1)]))
"""


def test_each_fault_is_detected(tmp_path: Path) -> None:
    script = tmp_path / "registry.py"
    script.write_text(CODE)
    process = run([str(script)])
    assert process.returncode == 0, process.stderr
    reports, starved = map(json.loads, process.stdout.splitlines())
    for arch, instruction in (("sm_80", "HMMA"), ("sm_90", "HGMMA")):
        good, narrow, spilled, product, tf32, ieee, wide_taps, narrow_taps = (
            r for r in reports if r["arch"] == arch
        )
        assert good["faults"] == []
        assert good["instructions"]["loads16"] == 2
        assert re.fullmatch(r"\d+ tile loads or stores of less than 16 bytes", *narrow["faults"])
        assert "spills" in spilled["faults"][0]
        assert product["instructions"][instruction] > 0
        assert tf32["faults"] == product["faults"] == []
        # An fp32 product in IEEE arithmetic has no matrix instructions and does not need any.
        assert ieee["faults"] == []
        assert ieee["instructions"][instruction] == 0
        # These kernels use the loader with which weight gradients read strided images.
        assert wide_taps["faults"] == []
        assert re.fullmatch(r"\d+ tile loads or stores of less than 16 bytes", *narrow_taps["faults"])
    assert "bytes of shared memory, but the chip has 1000" in starved[0]["faults"][0]
