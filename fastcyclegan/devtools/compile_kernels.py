"""Compile kernels ahead of time and report on the compiled code. Needs no GPU.

``jobs_of`` finds the kernels to compile with a dry run. ``read_kernel`` extracts the figures from a compiled
kernel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fastcyclegan.devtools.compile_worker import die_with
from fastcyclegan.devtools.dry_run import dry_run
from fastcyclegan.devtools.jobs import Job, job_of
from fastcyclegan.devtools.read_kernel import Compiled, compiled, disassemble
from fastcyclegan.kernels._launch import Chip, Launch


@dataclass(frozen=True)
class Arch:
    """A chip and its limits.

    ``block_smem`` and ``sm_smem`` are the bytes of shared memory per block and per SM. ``warps`` and
    ``blocks`` are the numbers of warps and blocks that can be resident on an SM. If ``gated`` is true, a
    fault in a kernel makes the command compile_kernels exit with an error; if false, it is only noted.
    """

    chip: Chip
    block_smem: int
    sm_smem: int
    warps: int = 64
    blocks: int = 32
    gated: bool = True


# CUDA C++ Programming Guide, "Technical specifications per compute capability". The numbers of
# multiprocessors are those of an A100, H100, B200 and RTX 5090.
ARCHS = {
    "sm_80": Arch(Chip(80, 108), 163 << 10, 164 << 10),
    "sm_90": Arch(Chip(90, 132), 227 << 10, 228 << 10),
    "sm_100": Arch(Chip(100, 148), 227 << 10, 228 << 10, gated=False),
    "sm_120": Arch(Chip(120, 170), 99 << 10, 100 << 10, 48, 24),
}

WARP = 32  # threads
# SASS instructions. HGMMA is Hopper's matrix instruction, UTC*MMA is Blackwell's (tcgen05), LDGSTS is
# cp.async, and UTMA* and UBLKCP use the TMA.
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
    """The figures of one job compiled for one architecture.

    ``faults`` describes everything for which the kernel gate rejects the kernel.
    """

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
class RunJobs:
    """The specialisations that a run launches.

    ``choices`` maps the name of each tuned choice to the number of configurations to choose from.
    """

    jobs: tuple[Job, ...]
    choices: dict[str, int]


def jobs_of(run: Callable[[], Any], chip: Chip, all_configs: bool = True, all_forms: bool = False) -> RunJobs:
    """Call ``run`` in a dry run, and return the specialisations that it would launch on ``chip``.

    If ``all_configs`` is true, every configuration that can be chosen on the chip is included; if false, only
    the first one. If ``all_forms`` is true, launches that use tensor descriptors are also included in the
    form that uses pointers.
    """
    jobs: dict[Job, None] = {}

    def record(launch: Launch) -> None:
        jobs.setdefault(job_of(launch, chip.capability))

    with dry_run(on_launch=record, all_configs=all_configs, chip=chip, all_forms=all_forms) as observer:
        run()
    return RunJobs(tuple(jobs), observer.choices)


# --- Compiling and reading ----------------------------------------------------------------------------------


def _occupancy(registers: int, smem: int, warps: int, arch: Arch) -> float:
    """Return the fraction of an SM's warps that can be resident if each block uses these resources.

    Registers are allocated in units of 256 per warp, and shared memory in units of 1 KiB plus 1 KiB per
    block.
    """
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * warps)
    by_smem = arch.sm_smem // (-(-smem // 1024) * 1024 + 1024)
    return min(by_registers, by_smem, arch.warps // warps, arch.blocks) * warps / arch.warps


def dtype_of(job: Job) -> str:
    """Return the dtype of the first tensor of ``job``."""
    for kind in job.types.values():
        tensor = re.match(r"(?:\*|tensordesc<)(\w+)", kind)
        if tensor is not None:
            return tensor[1]
    raise ValueError(f"{job.kernel} has no tensor")


def _report(job: Job, name: str, kernel: Compiled, sass: str) -> Report:
    arch = ARCHS[name]
    instructions = {key: len(re.findall(pattern, sass)) for key, pattern in INSTRUCTIONS.items()}
    faults = []
    local = instructions["local"]
    if kernel.stack or local:
        faults.append(f"spills ({kernel.stack} bytes of stack, {local} local loads and stores)")
    if kernel.smem > arch.block_smem:
        faults.append(f"{kernel.smem} bytes of shared memory, but the chip has {arch.block_smem}")
    if kernel.narrow and _tile_bytes(job) >= 16 * WARP:
        faults.append(f"{kernel.narrow} tile loads or stores of less than 16 bytes")
    if kernel.multiplies and not any(instructions[key] for key in ("HMMA", "HGMMA", "tcgen05")):
        faults.append("a 16-bit or tf32 matrix product without matrix instructions")
    config = {key: int(value) for key, value in job.constants.items() if isinstance(value, int)}
    dtype = dtype_of(job)
    occupancy = _occupancy(kernel.registers, kernel.smem, job.num_warps, arch)
    sizes = (kernel.registers, kernel.stack, kernel.smem, occupancy, kernel.narrow)
    return Report(name, job.kernel, dtype, config, job.num_warps, *sizes, instructions, faults)


def _tile_bytes(job: Job) -> int:
    """Return the size in bytes of the job's tile of pixels and channels.

    If a tile has less than 16 bytes per thread of a warp, its accesses cannot all be 16 bytes wide. For jobs
    without such a tile, the result is exactly 16 bytes per thread of a warp.
    """
    constants = job.constants
    if "BLOCK_S" not in constants:
        return 16 * WARP
    item = 4 if dtype_of(job) == "fp32" else 2
    return int(constants["BLOCK_S"] * constants["BLOCK_C"]) * item


def reports(jobs: dict[str, list[Job]], out: Path | None = None, processes: int = 2) -> list[Report]:
    """Compile the jobs of each architecture and return a report on each job.

    If ``out`` is given, the cubins are written to that folder.
    """
    collected = []
    # Spawned rather than forked, because this process has torch's threads.
    with ProcessPoolExecutor(processes, get_context("spawn"), die_with, (os.getpid(),)) as pool:
        for name, arch_jobs in jobs.items():
            try:
                kernels = list(pool.map(compiled, arch_jobs, chunksize=4))
            except BaseException:
                # Do not compile the jobs that are still waiting.
                pool.shutdown(cancel_futures=True)
                raise
            if out is not None:
                for job, kernel in zip(arch_jobs, kernels, strict=True):
                    file = f"{job.kernel.strip('_')}-{name}-{kernel.hash[:12]}.cubin"
                    (out / file).write_bytes(kernel.cubin)
            sass = disassemble([kernel.cubin for kernel in kernels], name)
            for job, kernel, listing in zip(arch_jobs, kernels, sass, strict=True):
                collected.append(_report(job, name, kernel, listing))
    return collected


# The columns of the table, and for each a function that reads its number from a report.
COLUMNS: dict[str, Callable[[Report], int]] = {
    "registers": lambda r: r.registers,
    "spill": lambda r: r.spilled,
    "smem B": lambda r: r.smem,
    "occupancy": lambda r: round(100 * r.occupancy),
    "16 B loads": lambda r: r.instructions["loads16"],
    "narrow": lambda r: r.narrow,
    "HMMA": lambda r: r.instructions["HMMA"],
    "HGMMA": lambda r: r.instructions["HGMMA"],
    "tcgen05": lambda r: r.instructions["tcgen05"],
    "cp.async": lambda r: r.instructions["cp_async"],
    "TMA": lambda r: r.instructions["tma"],
}


def table(entries: list[Report]) -> Iterator[str]:
    """Yield the lines of a table of all reports, followed by one line per fault.

    The table has one line per kernel, dtype and architecture, with the range of each figure over the
    configurations.
    """
    yield f"{'arch':7}{'kernel':34}{'dtype':6}{'configs':>8}" + "".join(f"{name:>15}" for name in COLUMNS)
    groups: dict[tuple[str, str, str], list[Report]] = {}
    for r in entries:
        groups.setdefault((r.arch, r.kernel.strip("_"), r.dtype), []).append(r)
    for (arch, kernel, dtype), group in sorted(groups.items()):
        line = f"{arch:7}{kernel:34}{dtype:6}{len(group):8}"
        for name, number in COLUMNS.items():
            cell = _range([number(r) for r in group])
            if name == "occupancy":
                cell += " %"
            line += f"{cell:>15}"
        yield line
    for r in entries:
        verdict = "FAIL" if ARCHS[r.arch].gated else "note"
        label = f"{r.arch} {r.kernel.strip('_')} {r.dtype} {r.config} {r.num_warps} warps"
        for fault in r.faults:
            yield f"{verdict}: {label}: {fault}"


def _range(values: list[int]) -> str:
    least, most = min(values), max(values)
    if least == most:
        return str(least)
    return f"{least}-{most}"
