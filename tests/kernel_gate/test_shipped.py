"""Tests of the list of shipped kernels: a missing kernel is an error, and fp16 needs no separate dry runs."""

from __future__ import annotations

import pytest

from tests.devtools.compiling import run

pytest.importorskip("triton")


def test_a_kernel_that_no_case_launches_is_an_error() -> None:
    code = "from fastcyclegan.kernel_gate import command as gate; from fastcyclegan.kernels import _launch\n"
    code += "_launch.REGISTRY['uncovered'] = None; gate.shipped_jobs([], gate.ARCHS['sm_90'])"
    process = run(["-c", code])
    assert "no case launches" in process.stderr
    assert "uncovered" in process.stderr


FP16 = """
import torch
from fastcyclegan.kernel_gate import command as gate, shipped
from fastcyclegan.devtools.compile_kernels import jobs_of
from fastcyclegan.nn.networks import Discriminator, Generator
from fastcyclegan.engine.batching import run_paired

def jobs(dtype):
    def run():
        for build in (Generator, Discriminator):
            nets = [build(impl="triton", **({"n_blocks": 1} if build is Generator else {})) for _ in range(2)]
            x = torch.zeros(2, 3, 64, 64).to(memory_format=torch.channels_last).requires_grad_()
            with torch.autocast("cpu", dtype):
                y = run_paired([net.to(memory_format=torch.channels_last) for net in nets], x, "triton")
                z = nets[0](x)
            (y.sum() + z.sum()).backward()
    return set(jobs_of(run, gate.ARCHS["sm_90"].chip).jobs)

bf16, fp16 = jobs(torch.bfloat16), jobs(torch.float16)
print(len(bf16), bf16 != fp16, {shipped.in_fp16(job) for job in bf16} == fp16)
"""


def test_fp16_launches_the_same_kernels_as_bf16() -> None:
    """The jobs of a run in fp16 are those of the run in bf16 with the dtype replaced.

    So the kernel gate does not have to run everything in fp16, which takes minutes on a CPU.
    """
    process = run(["-c", FP16])
    assert process.returncode == 0, process.stderr
    count, differ, same = process.stdout.split()
    assert int(count) > 100
    assert (differ, same) == ("True", "True")
