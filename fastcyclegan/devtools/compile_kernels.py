"""Compile kernels ahead of time and report what the compiler made of them. Needs no GPU.

What to compile is found out by running something dry (``jobs_of``). Registers, stack and shared memory are
read from the cubin, instructions from its SASS, the width of tile loads and stores from the PTX, line by
line.
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton

from fastcyclegan.devtools.compile_worker import die_with
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.devtools.jobs import Job, compile_job, job_of

# The kernels register themselves, in this process and in those that compile.
from fastcyclegan.kernels import (
    _math,
    every_kernel,  # noqa: F401
    zero_conv_triton,
)
from fastcyclegan.kernels._launch import Chip, Launch


@dataclass(frozen=True)
class Arch:
    """A chip, and its limits: shared memory that a block and an SM may have (bytes), warps and blocks
    resident on an SM.

    Where ``gated``, a bad kernel makes the command fail; elsewhere it is noted.
    """

    chip: Chip
    block_smem: int
    sm_smem: int
    warps: int = 64
    blocks: int = 32
    gated: bool = True


# CUDA C++ Programming Guide, "Technical specifications per compute capability"; multiprocessors of an A100,
# H100, B200 and RTX 5090.
ARCHS = {
    "sm_80": Arch(Chip(80, 108), 163 << 10, 164 << 10),
    "sm_90": Arch(Chip(90, 132), 227 << 10, 228 << 10),
    "sm_100": Arch(Chip(100, 148), 227 << 10, 228 << 10, gated=False),
    "sm_120": Arch(Chip(120, 170), 99 << 10, 100 << 10, 48, 24),
}

WARP = 32  # threads
# What matrix products read, by the names of the kernels' arguments.
OPERANDS = ("x", "w", "dy", "y")
# Instructions in SASS. HGMMA is Hopper's matrix instruction, UTC*MMA Blackwell's (tcgen05), LDGSTS cp.async,
# UTMA* and UBLKCP the TMA.
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


# --- What to compile ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What something launches: its specialisations, and between how many configurations each choice is open,
    by its name.
    """

    jobs: tuple[Job, ...]
    choices: dict[str, int]


def jobs_of(run: Callable[[], Any], chip: Chip, all_configs: bool = True, all_forms: bool = False) -> Found:
    """Run ``run`` dry and return what it would launch on ``chip``; in every configuration that may be chosen
    there, or in the first.

    ``all_forms``: launches through tensor descriptors as they would be through pointers too.
    """
    jobs: dict[Job, None] = {}

    def hear(launch: Launch) -> None:
        jobs.setdefault(job_of(launch, chip.capability))

    with dry_run(on_launch=hear, all_configs=all_configs, chip=chip, all_forms=all_forms) as found:
        run()
    return Found(tuple(jobs), found.choices)


# --- Compiling and reading ----------------------------------------------------------------------------------


def _tile_lines(operands: bool) -> dict[str, set[int]]:
    """Return, by file, the lines in which tiles are loaded and stored, those of a product's operands too if
    asked for.
    """
    lines: dict[str, set[int]] = {}
    for fn in (
        _math.load_tile,
        _math.store_tile,
        *((_math.load_operand, zero_conv_triton.load_taps) if operands else ()),
    ):
        source, first = inspect.getsourcelines(fn.fn)
        lines.setdefault(Path(fn.fn.__code__.co_filename).name, set()).update(
            range(first, first + len(source))
        )
    return lines


def narrow_accesses(ptx: str, operands: bool = True) -> int:
    """Return how many instructions load or store less than 16 bytes of a tile: found by the source line they
    came from.

    ``operands``: those of matrix products count too. An operand in fp32 that must be turned round comes in
    single values, by the compiler.
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
        elif inside and (
            copy := re.search(r"\bcp\.async\.c[ag]\.shared\.global\b.*\],\s*(0x[0-9a-f]+|\d+)\s*[,;]", line)
        ):
            narrow += int(copy[1], 0) < 16
    return narrow


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _occupancy(registers: int, smem: int, warps: int, arch: Arch) -> float:
    """Return the share of an SM's warps that can be resident: registers go by 256 a warp, shared memory by 1
    KiB with 1 KiB a block.
    """
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * warps)
    by_smem = arch.sm_smem // (-(-smem // 1024) * 1024 + 1024)
    return min(by_registers, by_smem, arch.warps // warps, arch.blocks) * warps / arch.warps


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
    kernel = compile_job(job)
    cubin = kernel.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", file.name)
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    narrow = narrow_accesses(
        kernel.asm["ptx"], operands=not any(job.types.get(key) == "*fp32" for key in OPERANDS)
    )
    multiplies = _multiplies(kernel.asm["ttir"])
    return Compiled(kernel.hash, cubin, registers, stack, kernel.metadata.shared, narrow, multiplies)


def _text(cubin: bytes) -> bytes:
    """Return the machine code of the one kernel in ``cubin`` (ELF64: the section called .text.NAME)."""
    offset, size, count, strings = (
        *struct.unpack_from("<Q", cubin, 0x28),
        *struct.unpack_from("<HHH", cubin, 0x3A),
    )
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * size) for i in range(count)]
    names = sections[strings][4]
    (code,) = (s for s in sections if cubin[names + s[0] :].startswith(b".text."))
    return cubin[code[4] : code[4] + code[5]]


def disassemble(cubins: list[bytes], name: str) -> list[str]:
    """Return the SASS of each cubin. All go through the disassembler at once: its start takes longer than a
    kernel.
    """
    texts = [_text(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        Path(file.name).write_bytes(b"".join(texts))
        listing = _tool("nvdisasm", "-b", name.upper().replace("_", ""), file.name)
    # An instruction has 16 bytes; its address stands before it.
    lines = {
        int(found[1], 16): found[0]
        for found in re.finditer(r"^\s*/\*([0-9a-f]+)\*/.*$", listing, re.MULTILINE)
    }
    starts = [0, *itertools.accumulate(map(len, texts))]
    return [
        "\n".join(lines[at] for at in range(a, b, 16) if at in lines) for a, b in itertools.pairwise(starts)
    ]


def dtype_of(job: Job) -> str:
    """Return the dtype of the first tensor of ``job``."""
    found = next(filter(None, (re.match(r"(?:\*|tensordesc<)(\w+)", kind) for kind in job.types.values())))
    return found[1]


def _report(job: Job, name: str, kernel: Compiled, sass: str) -> Report:
    arch = ARCHS[name]
    instructions = {key: len(re.findall(pattern, sass)) for key, pattern in INSTRUCTIONS.items()}
    faults = []
    if kernel.stack or instructions["local"]:
        faults.append(
            f"spills ({kernel.stack} bytes of stack, {instructions['local']} local loads and stores)"
        )
    if kernel.smem > arch.block_smem:
        faults.append(f"{kernel.smem} bytes of shared memory, the chip has {arch.block_smem}")
    if kernel.narrow and _tile_bytes(job) >= 16 * WARP:
        faults.append(f"{kernel.narrow} tile loads or stores of less than 16 bytes")
    if kernel.multiplies and not any(instructions[key] for key in ("HMMA", "HGMMA", "tcgen05")):
        faults.append("a matrix product in 16 bits or tf32 without matrix instructions")
    config = {key: int(value) for key, value in job.constants.items() if isinstance(value, int)}
    dtype = dtype_of(job)
    occupancy = _occupancy(kernel.registers, kernel.smem, job.num_warps, arch)
    sizes = (kernel.registers, kernel.stack, kernel.smem, occupancy, kernel.narrow)
    return Report(name, job.kernel, dtype, config, job.num_warps, *sizes, instructions, faults)


def _tile_bytes(job: Job) -> int:
    """Return the bytes of a tile of pixels by channels: in one that has no 16 for each thread of a warp
    nobody can load so many.
    """
    constants = job.constants
    if "BLOCK_S" not in constants:
        return 16 * WARP
    return int(constants["BLOCK_S"] * constants["BLOCK_C"]) * (4 if dtype_of(job) == "fp32" else 2)


def _multiplies(ttir: str) -> bool:
    """Whether the kernel has a matrix product that tensor cores do: any but one of fp32 in IEEE
    arithmetic."""
    return any(
        "inputPrecision = tf32" in line or "xf32" not in line
        for line in ttir.splitlines()
        if re.search(r"\btt\.dot\b", line)
    )


def reports(jobs: dict[str, list[Job]], out: Path | None = None, processes: int = 2) -> list[Report]:
    """Compile the jobs of each architecture and report on them; write the cubins to ``out`` if given."""
    found = []
    # Fresh processes: the parent has threads of torch's.
    with ProcessPoolExecutor(processes, get_context("spawn"), die_with, (os.getpid(),)) as pool:
        for name, mine in jobs.items():
            try:
                kernels = list(pool.map(compiled, mine, itertools.repeat(name), chunksize=4))
            except BaseException:
                # What waits is not compiled any more.
                pool.shutdown(cancel_futures=True)
                raise
            for job, kernel in zip(mine, kernels, strict=True):
                if out is not None:
                    (out / f"{job.kernel.strip('_')}-{name}-{kernel.hash[:12]}.cubin").write_bytes(
                        kernel.cubin
                    )
            sass = disassemble([kernel.cubin for kernel in kernels], name)
            found += [
                _report(job, name, kernel, listing)
                for job, kernel, listing in zip(mine, kernels, sass, strict=True)
            ]
    return found


def table(found: list[Report]) -> Iterator[str]:
    """Yield a line for each kernel, dtype and architecture: the range over its configurations, and each fault
    by itself.
    """
    columns = (
        "registers",
        "spill",
        "smem B",
        "occupancy",
        "16 B loads",
        "narrow",
        "HMMA",
        "HGMMA",
        "tcgen05",
        "cp.async",
        "TMA",
    )
    yield f"{'arch':7}{'kernel':34}{'dtype':6}{'configs':>8}" + "".join(f"{c:>15}" for c in columns)
    groups: dict[tuple[str, str, str], list[Report]] = {}
    for r in found:
        groups.setdefault((r.arch, r.kernel.strip("_"), r.dtype), []).append(r)
    for (arch, kernel, dtype), group in sorted(groups.items()):
        counts = [[r.instructions[key] for r in group] for key in ("loads16",)]
        others = [
            [r.instructions[key] for r in group] for key in ("HMMA", "HGMMA", "tcgen05", "cp_async", "tma")
        ]
        numbers = [[r.registers for r in group], [r.spilled for r in group], [r.smem for r in group]]
        cells = [
            *map(_range, numbers),
            _range([round(100 * r.occupancy) for r in group]) + " %",
            *map(_range, counts),
        ]
        cells += [_range([r.narrow for r in group]), *map(_range, others)]
        yield f"{arch:7}{kernel:34}{dtype:6}{len(group):8}" + "".join(f"{cell:>15}" for cell in cells)
    for r in found:
        for fault in r.faults:
            verdict = "FAIL" if ARCHS[r.arch].gated else "note"
            yield (
                f"{verdict}: {r.arch} {r.kernel.strip('_')} {r.dtype} {r.config} {r.num_warps} warps: {fault}"
            )


def _range(values: list[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)}-{max(values)}"
