"""The ahead-of-time gate: that it sees what it is there for. What ships is compiled by scripts/compile_kernels.py itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastcyclegan.checkpoints.run_files import write_config
from fastcyclegan.config import ModelConfig, TrainConfig

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton")

# A registry with one good kernel and one for each fault, compiled as the real ones are.
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
    return _jobs.job_of(_launch.Launch(kernel, 1, (x, y, c), constants, _launch.Config((), warps)), capability)

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


def run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=ROOT)


def test_each_fault_is_found(tmp_path: Path) -> None:
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
    code = "from fastcyclegan.kernel_gate import command as gate; from fastcyclegan.kernels import _launch\n"
    code += "_launch.REGISTRY['forgotten'] = None; gate.shipped_jobs([], gate.ARCHS['sm_90'])"
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
    code = "import sys; from fastcyclegan.kernel_gate import command as gate\n"
    code += "full = gate.shipped_jobs; gate.shipped_jobs = lambda *a: list({j.kernel: j for j in full(*a)}.values())\n"
    code += "if __name__ == '__main__': sys.exit(gate.main())"
    script = tmp_path / "short.py"
    script.write_text(code)
    options = [
        "--arch",
        "sm_90",
        "--dtype",
        "bf16",
        "--configs",
        "first",
        "--json",
        str(tmp_path / "r.json"),
        "--out",
        str(tmp_path / "cubins"),
    ]
    done = run([str(script), *options])
    assert done.returncode == 0, done.stdout + done.stderr
    sources = "".join(path.read_text() for path in (ROOT / "kernels").glob("*_triton.py"))
    kernels = sorted(re.findall(r"^@kernel\n.*\ndef _(\w+)", sources, re.MULTILINE))
    assert sorted(re.findall(r"^sm_90 +(\w+) ", done.stdout, re.MULTILINE)) == kernels
    assert len(list((tmp_path / "cubins").glob("*.cubin"))) == len(kernels)
    assert f"all {len(kernels)} pass" in done.stdout


FP16 = """
import torch
from fastcyclegan.kernel_gate import command as gate
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
print(len(bf16), bf16 != fp16, {gate.in_fp16(job) for job in bf16} == fp16)
"""


def test_fp16_launches_what_bf16_does() -> None:
    """So the gate need not run everything in fp16, which takes a CPU minutes."""
    done = run(["-c", FP16])
    assert done.returncode == 0, done.stderr
    count, differ, same = done.stdout.split()
    assert int(count) > 100
    assert (differ, same) == ("True", "True")


# The command with each list of arguments, one after the other: what it returns and prints. Of what there is to compile three are.
COMMANDS = """
import contextlib, dataclasses, io, json, sys
from fastcyclegan.kernel_gate import command as kernel_gate
from fastcyclegan.kernel_gate import warm

full = warm.jobs_of
def jobs_of(*a):
    found = full(*a)
    return dataclasses.replace(found, jobs=tuple(job for job in found.jobs if "sum" in job.kernel)[:3])
warm.jobs_of = jobs_of

def run(arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = kernel_gate.main(arguments)
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()

if __name__ == "__main__":
    print(json.dumps([run(arguments) for arguments in json.loads(sys.argv[1])]))
"""


def test_filling_the_cache_says_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the flags of train.py, and for a run's folder; what cannot be done is one line."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder, TrainConfig(model=ModelConfig(netG="resnet_1blocks", impl="reference")))
    (tmp_path / "file").write_text("")
    flags = "--netG resnet_1blocks --ngf 8 --ndf 8 --netD pixel --crop_size 32 --load_size 32 --lambda_identity 0".split()
    here = ["--arch", "sm_90"]
    wrong = {
        "--warm: this machine has no GPU: name the chip with --arch": ["--warm"],
        "--warm: nowhere is no folder of a run: it has no config.json": ["--warm", "nowhere", *here],
        "--warm: there are no kernels to compile: PyTorch computes resnet_1blocks": ["--warm", str(folder), *here],
        "--warm: --name names a run, and so does": ["--warm", str(folder), *here, "--name", "other"],
        "--json is the gate's and says nothing with --warm": ["--warm", *here, "--json", "x.json"],
        "netG": ["--warm", *here, "--netG", "resnet_none"],
        "unrecognized arguments: run (a run's folder and the flags of train.py come with --warm)": ["run", *here],
        f"{tmp_path}: Is a directory": [*here, "--json", str(tmp_path)],
        f"{tmp_path / 'file'}: File exists": [*here, "--out", str(tmp_path / "file")],
    }
    script = tmp_path / "commands.py"
    script.write_text(COMMANDS)
    done = run([str(script), json.dumps([*wrong.values(), ["--warm", *here, *flags], ["--warm", *here, *flags]])])
    assert done.returncode == 0, done.stdout + done.stderr
    *refused, first, second = json.loads(done.stdout)
    for message, (code, _, error) in zip(wrong, refused, strict=True):
        assert code == 2, error
        assert message in error
    here_are = "resnet_1blocks and pixel, batch 1, 32x32, bf16: 3 kernels for sm_90"
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert re.match(rf"{here_are}, compiling 3 that Triton's cache lacks in [12] processes, about [34] s\n", first[1])
    assert re.search(
        r"compiled 3 in [\d.]+ s; tiles to be timed by the first iteration: [1-9]\d+ for [1-9]\d+ choices, about \d s\n$", first[1]
    )
    assert second[1] == f"{here_are}, all are in Triton's cache\n"
