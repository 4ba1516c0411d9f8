"""Find out which class of processor this is, and whether the C++ kernels support it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import sys
from pathlib import Path

import torch

_PROCESSORS = Path("/proc/cpuinfo")

# The instructions that the compiler may use for each class, by their names in /proc/cpuinfo.
_AVX2 = frozenset(("avx2", "fma", "f16c", "bmi2"))
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_AMX = frozenset(("amx_tile", "amx_bf16"))
# The values of ONEDNN_MAX_CPU_ISA that keep oneDNN from using AMX.
_BELOW_AMX = frozenset(
    "sse41 avx avx2 avx2_vnni avx2_vnni_2 avx512_core avx512_core_vnni avx512_core_bf16 avx512_core_fp16"
    " avx10_1_512".split()
)


def processor() -> str:
    """Return the class of this processor, or "" if the kernels do not support it.

    On x86-64 it is "amx", "avx512" or "avx2", on arm64 "neon". Like PyTorch's operators it obeys
    ``ATEN_CPU_CAPABILITY``, and ``ONEDNN_MAX_CPU_ISA`` can rule out AMX.
    """
    system, machine = system_and_machine()
    if not system:
        return ""
    if machine == "arm64":
        return "neon"
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and _has(_AVX512):
        limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
        # Other systems do not say whether the processor has it.
        if system == "linux" and _has(_AMX) and limit.lower() not in _BELOW_AMX:
            return "amx"
        return "avx512"
    if capability in ("AVX2", "AVX512") and _has(_AVX2):
        return "avx2"
    return ""


def system_and_machine() -> tuple[str, str]:
    """Return the system and the machine that the kernels are compiled for, or ("", "") if there are none.

    The systems are "linux", "darwin" (macOS) and "win32", the machines "x86_64" and "arm64".
    """
    machine = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}.get(
        platform.machine().lower(), ""
    )
    is_known = sys.platform in ("linux", "darwin", "win32") and machine and sys.maxsize > 2**32
    return (sys.platform, machine) if is_known else ("", "")


def _has(wanted: frozenset[str]) -> bool:
    """Return whether the processor has the extensions, as far as the system says what it has.

    Elsewhere PyTorch's word is taken: it looks for AVX2 and FMA, or for the same parts of AVX-512.
    """
    known = _instructions()
    return wanted <= known if known else sys.platform != "linux"


@functools.cache
def _instructions() -> frozenset[str]:
    """Return the names of the processor's extensions."""
    with contextlib.suppress(OSError):
        for line in _PROCESSORS.read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


def why_not_here() -> str:
    """Return why this machine cannot run the kernels, whatever its compiler, or "" if it can."""
    if not system_and_machine()[0]:
        return (
            "needs Linux, macOS or Windows on x86-64 or arm64, got"
            f" {platform.system()} on {platform.machine()}"
        )
    if processor():
        return ""
    limit = os.environ.get("ATEN_CPU_CAPABILITY")
    if limit is not None:
        return f"needs a processor with AVX2 (ATEN_CPU_CAPABILITY is {limit!r})"
    return "needs a processor with AVX2"


# Make torch.compile call this function instead of tracing it, see dispatch.py.
processor._dynamo_marked_constant = True  # type: ignore[attr-defined]
