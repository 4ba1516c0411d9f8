"""Print what computes on this processor, and why: the class of the processor, the C++ kernels, their origin.

    python -m fastcyclegan.devtools.cpu_report

Its output belongs in every report of a problem on a CPU. It loads the kernels as a network would, so the
first call can compile them.

Exit code 0: impl="auto" uses the C++ kernels. 1: PyTorch computes everything. 2: the report cannot be
printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import fastcyclegan
from fastcyclegan.errors import escape_on_streams, printable
from fastcyclegan.kernels._cache import cache_folder
from fastcyclegan.kernels.cpu import choice, library, wheel_library
from fastcyclegan.kernels.cpu._compiler import CompilerError, find_compiler
from fastcyclegan.kernels.cpu.processors import processor

# Environment variables that decide which kernels are used.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "OMP_NUM_THREADS",
    "CXX",
    "XDG_CACHE_HOME",
)
# Layers of the standard generator at 256x256 pixels that a C++ kernel can compute: k, C, O and the side.
_LAYERS = ((7, 3, 64, 256), (3, 256, 256, 64), (7, 64, 3, 256))
_OPS = {
    "conv": "translation",
    "once": "forward",
    "dgrad": "gradient of the image",
    "wgrad": "gradient of the weight",
}


def uses_kernels() -> bool:
    """Return whether impl="auto" uses the C++ kernels on this CPU."""
    return choice.is_measured() and not library.why_not_cpp()


def report() -> Iterator[tuple[str, str]]:
    """Yield names and texts: the versions, the processor, the C++ kernels, and what computes each layer."""
    yield "versions", _versions()
    yield "processor", f"{_processor_name()}, {_class()}, {torch.get_num_threads()} threads"
    yield "environment", _environment()
    yield "C++ kernels", _kernels()
    yield "impl=auto", _auto()
    yield "installed", _wheel()
    yield "compiler", _compiler()
    yield "cache", str(cache_folder("cpu"))
    yield "OpenMP", _openmp()
    if uses_kernels():
        for dtype in (torch.float32, torch.bfloat16):
            for layer in _LAYERS:
                yield _layer(dtype, *layer)
        yield "other layers", "PyTorch (strided and transposed convolutions of more than 4 channels)"


def _versions() -> str:
    system = f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip()
    parts = (
        f"fastcyclegan {fastcyclegan.__version__}",
        f"torch {torch.__version__}",
        f"Python {platform.python_version()}",
        system,
    )
    return ", ".join(parts)


def _processor_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor())


def _class() -> str:
    kind = processor()
    return f"class {kind}" if kind else "of no class that the kernels support"


def _environment() -> str:
    values = [f"{name}={os.environ[name]}" for name in _VARIABLES if name in os.environ]
    return " ".join(values) if values else "nothing set that matters here"


def _kernels() -> str:
    answer = library.answer()
    return f"not usable: impl='cpp' {answer.reason}" if answer.reason else answer.origin


def _auto() -> str:
    if uses_kernels():
        file = choice.table_file(processor())
        count = len(choice.times(processor()))
        return f"the C++ kernels where they are faster, by {count} measured times in {file}"
    if choice.is_measured() or not processor():
        return "PyTorch, because the C++ kernels cannot be used"
    return "PyTorch, because there is no table of measured times for such a machine"


def _wheel() -> str:
    found = wheel_library.load(processor(), library.SOURCE)
    if found.library is not None:
        return f"a library, built by {found.compiler}"
    return found.problem if found.problem else "no library for this processor; a checkout has none"


def _compiler() -> str:
    try:
        found = find_compiler()
    except CompilerError as error:
        return f"impl='cpp' {error}" if library.answer().reason else f"none that works: {error}"
    return f"{' '.join(found.command)}, {found.version}"


def _openmp() -> str:
    """Return the OpenMP runtimes that this process has loaded. More than one would each have threads."""
    file = Path("/proc/self/maps")
    lines = file.read_text().splitlines() if file.exists() else []
    names = {line.split()[-1] for line in lines if "omp" in Path(line.split()[-1]).name and ".so" in line}
    return ", ".join(sorted(names)) if names else "unknown"


def _layer(dtype: torch.dtype, k: int, C: int, O: int, side: int) -> tuple[str, str]:
    """Return a layer's name, and what computes it and its gradients."""
    name = f"{str(dtype).removeprefix('torch.')} {k}x{k} {C} to {O}"
    return name, ", ".join(f"{text} {_chosen(op, dtype, k, C, O, side)}" for op, text in _OPS.items())


def _chosen(op: str, dtype: torch.dtype, k: int, C: int, O: int, side: int) -> str:
    """Return what computes an operator of a layer, with the times of a shape that was measured itself."""
    order = ["cpp", "torch"]
    if not choice.is_faster(op, dtype, k, 1, C, O, side * side):
        order.reverse()
    used, other = ({"cpp": "C++", "torch": "PyTorch"}[name] for name in order)
    times = choice.times(processor()).get(choice.key(op, dtype, k, 1, C, O, side * side))
    if times is None:
        return used
    return f"{used} ({times[order[0]]:.3g} ms, {other} {times[order[1]]:.3g})"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastcyclegan.devtools.cpu_report",
        description="Print what computes on this processor, and why.",
        epilog='Exit code 0: impl="auto" uses the C++ kernels. 1: PyTorch computes everything.'
        " 2: the report cannot be printed.",
    )
    parser.parse_args(arguments)
    rows = list(report())
    width = max(len(name) for name, _ in rows)
    text = "".join(f"{printable(f'{name:{width}}  {text}')}\n" for name, text in rows)
    try:
        # In one piece, so that a reader that stops early (head) causes no error.
        print(text, end="", flush=True)
    except OSError as error:
        # Python would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"cpu_report: cannot print the report: {error.strerror}", file=sys.stderr)
        return 2
    return 0 if uses_kernels() else 1


if __name__ == "__main__":
    escape_on_streams()
    sys.exit(main())
