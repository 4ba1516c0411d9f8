"""Compile a kernel and extract figures from the compiled code. Needs no GPU.

Registers, stack and shared memory are read from the cubin, instructions from its SASS, and the width of tile
loads and stores from the PTX, line by line.
"""

from __future__ import annotations

import inspect
import itertools
import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

from fastcyclegan.devtools.jobs import Job, compile_job

# Importing the kernels registers them, in this process and in those that compile.
from fastcyclegan.kernels import (
    _math,
    every_kernel,  # noqa: F401
    zero_conv_triton,
)

# The names of those kernel arguments that are operands of matrix products.
OPERANDS = ("x", "w", "dy", "y")


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel and its figures.

    ``stack`` and ``smem`` are in bytes. ``narrow`` is the result of ``narrow_accesses``. ``multiplies`` is
    true if the kernel contains a matrix product for tensor cores.
    """

    hash: str
    cubin: bytes
    registers: int
    stack: int
    smem: int
    narrow: int
    multiplies: bool


def compiled(job: Job) -> Compiled:
    """Compile ``job`` and return the kernel with its figures."""
    kernel = compile_job(job)
    cubin = kernel.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", file.name)
    of_fp32 = any(job.types.get(key) == "*fp32" for key in OPERANDS)
    return Compiled(
        kernel.hash,
        cubin,
        _number(usage, "REG"),
        _number(usage, "STACK"),
        kernel.metadata.shared,
        narrow_accesses(kernel.asm["ptx"], operands=not of_fp32),
        _multiplies(kernel.asm["ttir"]),
    )


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _number(usage: str, key: str) -> int:
    match = re.search(rf"{key}:(\d+)", usage)
    assert match is not None
    return int(match[1])


# --- The PTX ------------------------------------------------------------------------------------------------


def _tile_lines(operands: bool) -> dict[str, set[int]]:
    """Return the numbers of the source lines that load and store tiles, as one set per file name.

    If ``operands`` is true, lines that load the operands of matrix products are included.
    """
    functions = [_math.load_tile, _math.store_tile]
    if operands:
        functions += [_math.load_operand, zero_conv_triton.load_taps]
    lines: dict[str, set[int]] = {}
    for fn in functions:
        source, first = inspect.getsourcelines(fn.fn)
        file = Path(fn.fn.__code__.co_filename).name
        lines.setdefault(file, set()).update(range(first, first + len(source)))
    return lines


def narrow_accesses(ptx: str, operands: bool = True) -> int:
    """Return how many instructions load or store less than 16 bytes of a tile.

    The instructions are found by their source lines. If ``operands`` is true, loads of the operands of matrix
    products are counted too. Do not count them in fp32, where the compiler loads an operand that must be
    transposed one value at a time.
    """
    tiles = _tile_lines(operands)
    lines_of: dict[str, set[int]] = {}
    for number, file in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', ptx, re.MULTILINE):
        lines_of[number] = tiles.get(Path(file).name, set())
    narrow, inside = 0, False
    for line in ptx.splitlines():
        if loc := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
            inside = int(loc[2]) in lines_of.get(loc[1], ())
        elif inside and _is_narrow(line):
            narrow += 1
    return narrow


def _is_narrow(line: str) -> bool:
    """Return whether a line of PTX loads, stores or copies less than 16 bytes at once."""
    access = re.search(r"\b(?:ld|st)\.global\S*?(?:\.v(\d))?\.[busf](\d+)\b", line)
    if access is not None:
        values, bits = access.groups(default="1")
        return int(values) * int(bits) < 128
    copy = re.search(r"\bcp\.async\.c[ag]\.shared\.global\b.*\],\s*(0x[0-9a-f]+|\d+)\s*[,;]", line)
    return copy is not None and int(copy[1], 0) < 16


def _multiplies(ttir: str) -> bool:
    """Return whether the kernel has a matrix product for tensor cores.

    That is every product except those of fp32 in IEEE arithmetic.
    """
    for line in ttir.splitlines():
        if re.search(r"\btt\.dot\b", line) and ("inputPrecision = tf32" in line or "xf32" not in line):
            return True
    return False


# --- The cubin ----------------------------------------------------------------------------------------------


def _text(cubin: bytes) -> bytes:
    """Return the machine code of the only kernel in ``cubin``, an ELF64 file: its section .text.NAME."""
    (offset,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, strings = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * size) for i in range(count)]
    names = sections[strings][4]
    (code,) = (s for s in sections if cubin[names + s[0] :].startswith(b".text."))
    return cubin[code[4] : code[4] + code[5]]


def disassemble(cubins: list[bytes], name: str) -> list[str]:
    """Return the SASS of each cubin.

    All are disassembled in one call, because starting the disassembler takes longer than disassembling a
    kernel.
    """
    texts = [_text(cubin) for cubin in cubins]
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        Path(file.name).write_bytes(b"".join(texts))
        listing = _tool("nvdisasm", "-b", name.upper().replace("_", ""), file.name)
    # An instruction has 16 bytes, and its address precedes it in the listing.
    lines = {}
    for match in re.finditer(r"^\s*/\*([0-9a-f]+)\*/.*$", listing, re.MULTILINE):
        lines[int(match[1], 16)] = match[0]
    listings = []
    starts = [0, *itertools.accumulate(map(len, texts))]
    for a, b in itertools.pairwise(starts):
        listings.append("\n".join(lines[at] for at in range(a, b, 16) if at in lines))
    return listings
