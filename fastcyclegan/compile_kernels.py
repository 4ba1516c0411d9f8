"""Compile every configuration of every kernel ahead of time and report what the compiler made of it. Needs no GPU.

What to compile is found out by running the networks dry at their real sizes (and the operators' other modes by themselves), with every
configuration in the kernels' lists; a kernel of the registry that none of this launches is an error. Registers, stack and shared memory
are read from the cubin, instructions from its SASS, the width of tile loads and stores from the PTX, line by line.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastcyclegan.counters import dry_run

# The kernels register themselves, in this process and in those that compile.
from fastcyclegan.kernels import (  # noqa: F401
    _launch,
    _math,
    accumulating,
    border_triton,
    descriptor_launch,
    instance_norm,
    instance_norm_triton,
    reflect_conv2d,
    reflect_conv_triton,
    zero_conv_triton,
)
from fastcyclegan.kernels.zero_conv import zero_conv
from fastcyclegan.networks import Discriminator, Generator, PixelDiscriminator, UnetGenerator
from fastcyclegan.waves import waves

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Arch:
    """A chip's limits: shared memory a block and an SM may have (bytes). Where ``gated``, a bad kernel makes the command fail."""

    capability: int
    block_smem: int
    sm_smem: int
    gated: bool = True


# CUDA C++ Programming Guide, "Technical specifications per compute capability".
ARCHS = {
    "sm_80": Arch(80, 163 << 10, 164 << 10),
    "sm_90": Arch(90, 227 << 10, 228 << 10),
    "sm_100": Arch(100, 227 << 10, 228 << 10, gated=False),
}

# What matrix products read, by the names of the kernels' arguments.
OPERANDS = ("x", "w", "dy", "y")
# Instructions in SASS. HGMMA is Hopper's matrix instruction, UTC*MMA Blackwell's (tcgen05), LDGSTS cp.async, UTMA* and UBLKCP the TMA.
INSTRUCTIONS = {
    "HMMA": r"\bHMMA\b",
    "HGMMA": r"\bHGMMA\b",
    "tcgen05": r"\bUTC\w*MMA\b",
    "loads16": r"\bLDG\.E\S*\.128\b",
    "cp_async": r"\bLDGSTS\b",
    "tma": r"\b(?:UTMALDG|UTMASTG|UBLKCP)\b",
    "local": r"\b(?:LDL|STL)\b",
}


@dataclass(frozen=True)
class Job:
    """One kernel with its argument types ("*bf16", "i32", "i32:16" for a multiple of 16, "fp32"), constexprs and configuration."""

    kernel: str
    types: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Report:
    """What one job compiled to on one architecture; ``faults`` names what the gate does not accept."""

    arch: str
    kernel: str
    dtype: str
    config: dict[str, Any]
    num_warps: int
    registers: int
    spilled: int
    smem: int
    occupancy: float
    narrow: int
    instructions: dict[str, int]
    faults: list[str]


# --- What to compile --------------------------------------------------------------------------------------------------------------


def job_of(launch: _launch.Launch) -> Job:
    """Return the specialisation that Triton makes of ``launch``."""
    parameters = _launch.REGISTRY[launch.kernel].params
    types, constants = [], {**launch.constants, **launch.config.constants}
    for parameter, value in zip(parameters, launch.args, strict=False):
        name, general = parameter.name, parameter.do_not_specialize
        if isinstance(value, Tensor):
            types.append((name, f"*{TYPES[value.dtype]}:16"))
        elif isinstance(value, TensorDescriptor):
            types.append((name, f"tensordesc<{TYPES[value.base.dtype]}{value.block_shape}>"))
        elif value is None or (isinstance(value, int) and value == 1 and not general):
            constants[name] = value
        elif isinstance(value, float):
            types.append((name, "fp32"))
        else:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            types.append((name, f"{kind}:16" if value % 16 == 0 and not general else kind))
    return Job(launch.kernel, tuple(types), tuple(sorted(constants.items())), launch.config.num_warps, launch.config.num_stages)


def _train(build: Any, dtype: torch.dtype, size: int = 256, **options: Any) -> None:
    net = build(impl="triton", **options).to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.zeros(1, 3, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = net(x)
    y.backward(torch.empty_like(y))


def _operators(dtype: torch.dtype) -> None:
    """The modes that no network uses: planes, affine norms, a convolution alone with its bias, a gradient added to another."""
    for shape in ((1, 64, 256, 256), (1, 256, 32, 32)):
        x, residual = (torch.zeros(shape, dtype=dtype, requires_grad=True) for _ in range(2))
        weight, bias = (torch.zeros(shape[1], requires_grad=True) for _ in range(2))
        y = instance_norm(x, weight, bias, act="leaky_relu", residual=residual, impl="triton")
        y.backward(torch.empty_like(y))
    for channels in ((256, 256), (64, 3)):
        weight, bias = torch.zeros(channels[1], channels[0], 3, 3, requires_grad=True), torch.zeros(channels[1], requires_grad=True)
        x = torch.zeros(1, channels[0], 64, 64, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        for _ in range(2):
            y = reflect_conv2d(x, weight, bias, padding=1, impl="triton")
            with accumulating():
                y.backward(torch.empty_like(y))


# The layers between pictures of 256 x 256 that are not stride 1 with a reflected border: channels in and out, side, kernel, stride, up.
LAYERS = [
    (64, 128, 256, 3, 2, False), (128, 256, 128, 3, 2, False), (256, 128, 64, 3, 2, True), (128, 64, 128, 3, 2, True),
    (3, 64, 256, 4, 2, False), (1, 64, 256, 4, 2, False), (64, 128, 128, 4, 2, False), (128, 256, 64, 4, 2, False),
    (256, 512, 32, 4, 1, False), (512, 1, 31, 4, 1, False),
]  # fmt: skip


def _layers(dtype: torch.dtype) -> None:
    """Convolutions with zero padding, of two networks in one launch: what norm_conv leaves to cuDNN where it serves one."""
    for inside, out, side, kernel, stride, up in LAYERS:
        shape = (inside, out) if up else (out, inside)
        weights = [torch.zeros(*shape, kernel, kernel).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2)]
        biases = [torch.zeros(out, requires_grad=True) for _ in range(2)]
        x = torch.zeros(2, inside, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        options: dict[str, Any] = {"norm": True, "act": "relu"} if inside > 3 else {}
        for _ in range(2):
            y = zero_conv(x, weights, biases, stride=stride, padding=1, transposed=up, output_padding=int(up), **options)
            with accumulating():
                y.backward(torch.empty_like(y))


def shipped_jobs(dtypes: list[torch.dtype], capability: int = 90, all_configs: bool = True) -> list[Job]:
    """Return every specialisation that the networks and operators launch on a chip of ``capability``, in all or the first configuration.

    Raises RuntimeError for a kernel that nothing launches.
    """
    jobs: dict[Job, None] = {}
    with dry_run(on_launch=lambda launch: jobs.setdefault(job_of(launch)), all_configs=all_configs, capability=capability):
        for dtype in dtypes:
            for build in (Discriminator, PixelDiscriminator, UnetGenerator):
                _train(build, dtype)
            for tf32 in (True, False) if dtype == torch.float32 else (True,):
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                    _layers(dtype)
                    _train(Generator, dtype, n_blocks=1)
                    _train(Generator, dtype, n_blocks=1, upsample="resize", recompute=False)
            _operators(dtype)
        if capability >= 90:
            list(descriptor_launch.tiles(torch.device("cpu")))
    # A chip that has no tensor descriptors is not asked about them.
    unasked = set() if capability >= 90 else {"_descriptor_copy_kernel"}
    forgotten = sorted(set(_launch.REGISTRY) - {job.kernel for job in jobs} - unasked)
    if forgotten:
        raise RuntimeError(f"nothing here launches {', '.join(forgotten)}: add a case to fastcyclegan/compile_kernels.py")
    return list(jobs)


# --- Compiling and reading ---------------------------------------------------------------------------------------------------------


def compile_job(job: Job, arch: Arch) -> Any:
    """Return Triton's compiled kernel."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fn = _launch.REGISTRY[job.kernel]
    order = {name: i for i, name in enumerate(fn.arg_names)}
    types = dict(job.types)
    signature = {name: types[name].removesuffix(":16") if name in types else "constexpr" for name in fn.arg_names}
    attrs = {(order[name],): [["tt.divisibility", 16]] for name, kind in job.types if kind.endswith(":16")}
    source = ASTSource(fn, signature, {(order[name],): value for name, value in job.constants}, attrs)
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", arch.capability, 32), options=options)


def _tile_lines(operands: bool) -> dict[str, set[int]]:
    """Return, by file, the lines in which tiles are loaded and stored, those of a product's operands too if asked for."""
    lines: dict[str, set[int]] = {}
    for fn in (_math.load_tile, _math.store_tile, *((_math.load_operand, zero_conv_triton.load_taps) if operands else ())):
        source, first = inspect.getsourcelines(fn.fn)
        lines.setdefault(Path(fn.fn.__code__.co_filename).name, set()).update(range(first, first + len(source)))
    return lines


def narrow_accesses(ptx: str, operands: bool = True) -> int:
    """Return how many instructions load or store less than 16 bytes of a tile: found by the source line they came from.

    ``operands``: those of matrix products count too. An operand in fp32 that must be turned round comes in single values, by the compiler.
    """
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', ptx, re.MULTILINE))
    tiles = _tile_lines(operands)
    mine = {number: tiles[Path(name).name] for number, name in files.items() if Path(name).name in tiles}
    narrow, inside = 0, False
    for line in ptx.splitlines():
        if loc := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
            inside = int(loc[2]) in mine.get(loc[1], ())
        elif inside and (access := re.search(r"\b(?:ld|st)\.global\S*?(?:\.v(\d))?\.[busf](\d+)\b", line)):
            narrow += int(access[1] or 1) * int(access[2]) < 128
        elif inside and (copy := re.search(r"\bcp\.async\.c[ag]\.shared\.global\b.*\],\s*(0x[0-9a-f]+|\d+)\s*[,;]", line)):
            narrow += int(copy[1], 0) < 16
    return narrow


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _occupancy(registers: int, smem: int, warps: int, arch: Arch) -> float:
    """Return the share of an SM's 64 warps that can be resident: registers go by 256 a warp, shared memory by 1 KiB with 1 KiB a block."""
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * warps)
    by_smem = arch.sm_smem // (-(-smem // 1024) * 1024 + 1024)
    return min(by_registers, by_smem, 64 // warps, 32) * warps / 64


@dataclass(frozen=True)
class Compiled:
    """What is read off one compiled kernel."""

    hash: str
    cubin: bytes
    registers: int
    stack: int
    smem: int
    narrow: int
    multiplies: bool


def compiled(job: Job, name: str) -> Compiled:
    """Compile ``job`` for the architecture called ``name``."""
    kernel = compile_job(job, ARCHS[name])
    cubin = kernel.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", file.name)
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    narrow = narrow_accesses(kernel.asm["ptx"], operands=not any(kind == "*fp32:16" for key, kind in job.types if key in OPERANDS))
    multiplies = _multiplies(kernel.asm["ttir"])
    return Compiled(kernel.hash, cubin, registers, stack, kernel.metadata.shared, narrow, multiplies)


def _text(cubin: bytes) -> bytes:
    """Return the machine code of the one kernel in ``cubin`` (ELF64: the section called .text.NAME)."""
    offset, size, count, strings = (*struct.unpack_from("<Q", cubin, 0x28), *struct.unpack_from("<HHH", cubin, 0x3A))
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * size) for i in range(count)]
    names = sections[strings][4]
    (code,) = (s for s in sections if cubin[names + s[0] :].startswith(b".text."))
    return cubin[code[4] : code[4] + code[5]]


def disassemble(cubins: list[bytes], name: str) -> list[str]:
    """Return the SASS of each cubin. All go through the disassembler at once: its start takes longer than a kernel."""
    texts = [_text(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        Path(file.name).write_bytes(b"".join(texts))
        listing = _tool("nvdisasm", "-b", name.upper().replace("_", ""), file.name)
    # An instruction has 16 bytes; its address stands before it.
    lines = {int(found[1], 16): found[0] for found in re.finditer(r"^\s*/\*([0-9a-f]+)\*/.*$", listing, re.MULTILINE)}
    starts = [0, *itertools.accumulate(map(len, texts))]
    return ["\n".join(lines[at] for at in range(a, b, 16) if at in lines) for a, b in itertools.pairwise(starts)]


def dtype_of(job: Job) -> str:
    """Return the dtype of the first tensor of ``job``."""
    found = re.match(r"(?:\*|tensordesc<)(\w+)", job.types[0][1])
    assert found is not None, job
    return found[1]


def _report(job: Job, name: str, kernel: Compiled, sass: str) -> Report:
    arch = ARCHS[name]
    instructions = {key: len(re.findall(pattern, sass)) for key, pattern in INSTRUCTIONS.items()}
    faults = []
    if kernel.stack or instructions["local"]:
        faults.append(f"spills ({kernel.stack} bytes of stack, {instructions['local']} local loads and stores)")
    if kernel.smem > arch.block_smem:
        faults.append(f"{kernel.smem} bytes of shared memory, the chip has {arch.block_smem}")
    if kernel.narrow:
        faults.append(f"{kernel.narrow} tile loads or stores of less than 16 bytes")
    if kernel.multiplies and not any(instructions[key] for key in ("HMMA", "HGMMA", "tcgen05")):
        faults.append("a matrix product in 16 bits or tf32 without matrix instructions")
    config = {key: int(value) for key, value in job.constants if isinstance(value, int)}
    dtype = dtype_of(job)
    occupancy = _occupancy(kernel.registers, kernel.smem, job.num_warps, arch)
    sizes = (kernel.registers, kernel.stack, kernel.smem, occupancy, kernel.narrow)
    return Report(name, job.kernel, dtype, config, job.num_warps, *sizes, instructions, faults)


def _multiplies(ttir: str) -> bool:
    """Whether the kernel has a matrix product that tensor cores do: any but one of fp32 in IEEE arithmetic."""
    return any("inputPrecision = tf32" in line or "xf32" not in line for line in ttir.splitlines() if re.search(r"\btt\.dot\b", line))


def reports(jobs: dict[str, list[Job]], out: Path | None = None, processes: int = 2) -> list[Report]:
    """Compile the jobs of each architecture and report on them; write the cubins to ``out`` if given."""
    found = []
    # Fresh processes: the parent has threads of torch's.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for name, mine in jobs.items():
            kernels = list(pool.map(compiled, mine, itertools.repeat(name), chunksize=4))
            for job, kernel in zip(mine, kernels, strict=True):
                if out is not None:
                    (out / f"{job.kernel.strip('_')}-{name}-{kernel.hash[:12]}.cubin").write_bytes(kernel.cubin)
            sass = disassemble([kernel.cubin for kernel in kernels], name)
            found += [_report(job, name, kernel, listing) for job, kernel, listing in zip(mine, kernels, sass, strict=True)]
    return found


def table(found: list[Report]) -> Iterator[str]:
    """Yield a line for each kernel, dtype and architecture: the range over its configurations, and each fault by itself."""
    columns = ("registers", "spill", "smem B", "occupancy", "16 B loads", "narrow", "HMMA", "HGMMA", "tcgen05", "cp.async", "TMA")
    yield f"{'arch':7}{'kernel':34}{'dtype':6}{'configs':>8}" + "".join(f"{c:>12}" for c in columns)
    groups: dict[tuple[str, str, str], list[Report]] = {}
    for r in found:
        groups.setdefault((r.arch, r.kernel.strip("_"), r.dtype), []).append(r)
    for (arch, kernel, dtype), group in sorted(groups.items()):
        counts = [[r.instructions[key] for r in group] for key in ("loads16",)]
        others = [[r.instructions[key] for r in group] for key in ("HMMA", "HGMMA", "tcgen05", "cp_async", "tma")]
        numbers = [[r.registers for r in group], [r.spilled for r in group], [r.smem for r in group]]
        cells = [*map(_range, numbers), _range([round(100 * r.occupancy) for r in group]) + " %", *map(_range, counts)]
        cells += [_range([r.narrow for r in group]), *map(_range, others)]
        yield f"{arch:7}{kernel:34}{dtype:6}{len(group):8}" + "".join(f"{cell:>12}" for cell in cells)
    for r in found:
        for fault in r.faults:
            verdict, kernel = "FAIL" if ARCHS[r.arch].gated else "note", r.kernel.strip("_")
            yield f"{verdict}: {r.arch} {kernel} {r.dtype} {r.config} {r.num_warps} warps: {fault}"


def _range(values: list[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"


def main() -> int:
    """The command line of scripts/compile_kernels.py. Returns 1 where a gated architecture has a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=list(ARCHS), default=list(ARCHS), help="chips; sm_100 is reported, the others gated")
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), default=list(DTYPES), help="dtypes of the tensors")
    parser.add_argument("--first", action="store_true", help="compile the first configuration of each list only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the full reports here")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the cubins here")
    parser.add_argument("--processes", type=int, default=2, help="compilers at a time")
    options = parser.parse_args()
    if _launch.interpreted():
        parser.error("TRITON_INTERPRET is set: interpreted kernels are not compiled; unset it")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    dtypes = [DTYPES[name] for name in options.dtype]
    jobs = {name: shipped_jobs(dtypes, ARCHS[name].capability, not options.first) for name in options.arch}
    found = reports(jobs, options.out, options.processes)
    counts = ", ".join(f"{len(mine)} for {name}" for name, mine in jobs.items())
    print(f"Triton {triton.__version__}, specialisations of {len(_launch.REGISTRY)} kernels: {counts}")
    print("\n".join([*table(found), *waves()]))
    if options.json is not None:
        options.json.write_text(json.dumps({"triton": triton.__version__, "kernels": [asdict(r) for r in found]}, indent=1))
    failed = sum(bool(r.faults) for r in found if ARCHS[r.arch].gated)
    print(f"{failed} of {len(found)} fail" if failed else f"all {len(found)} pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
