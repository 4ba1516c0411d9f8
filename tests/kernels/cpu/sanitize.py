"""Compile the C++ kernels with the driver in ``driver``, for a sanitizer or another processor, and run it.

python -m tests.kernels.cpu.sanitize --sanitizer address --seconds 60
python -m tests.kernels.cpu.sanitize --target neon --cases 1000

The driver tests every kernel on random cases. It needs neither Python nor PyTorch, so a sanitizer sees
nothing but the kernels, and an emulator has little to do. The exit code is 0 if all cases pass; 1 if one
fails, with the arguments that repeat it; 2 if an argument is wrong; 3 if the driver cannot be compiled or
run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastcyclegan.kernels.cpu import library, processors
from fastcyclegan.kernels.cpu._compiler import (
    CANDIDATES,
    FLAGS,
    CompilerError,
    find_compiler,
    first_error,
)

SOURCE = Path(library.__file__).with_name("source")
DRIVER = Path(__file__).with_name("driver")
NOT_RUN = 3

SANITIZERS = {
    "none": (),
    "address": ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-g1", "-fsanitize=thread"),
}
OPTIONS = {
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
    # Waiting threads leave the processor to others at once: the cases are tiny.
    "OMP_WAIT_POLICY": "passive",
    "WINEDEBUG": "-all",
}


class MissingToolError(Exception):
    """A compiler, an emulator or a processor that is not there. The message is one line."""


class CompilationError(Exception):
    """The driver cannot be compiled. The message is one line."""


@dataclass(frozen=True)
class Target:
    """A class of processors: the compiler, its flags, and the program that runs what it makes."""

    compilers: tuple[str, ...]
    processor: str
    static: bool = False
    emulators: tuple[str, ...] = ()
    program: str = "driver"
    # Whether the kernels use the threads of OpenMP there.
    openmp: bool = True


# The compiler that the kernels are compiled with at first use.
_HERE = CANDIDATES
TARGETS = {
    "avx2": Target(_HERE, "avx2"),
    "avx512": Target(_HERE, "avx512"),
    "neon": Target(("aarch64-linux-gnu-g++",), "neon", static=True, emulators=("qemu-aarch64",)),
    # The compiler of this name knows std::thread.
    "windows": Target(
        ("x86_64-w64-mingw32-g++-posix", "x86_64-w64-mingw32-g++"),
        "avx2",
        static=True,
        # Debian has it outside PATH.
        emulators=("wine64", "wine", "/usr/lib/wine/wine64"),
        program="driver.exe",
        openmp=False,
    ),
}


def native() -> str:
    """Return the target of this processor. Raises MissingToolError if the kernels do not support it."""
    name = processors.processor()
    if not name:
        raise MissingToolError("this processor has no AVX2")
    # The kernels have no instructions of AMX.
    return "avx512" if name == "amx" else name


def supported() -> list[str]:
    """Return the targets whose instructions this processor has."""
    name = native()
    return ["avx2", "avx512"] if name == "avx512" else [name]


@dataclass(frozen=True)
class Build:
    """A way to compile the driver."""

    target: str
    sanitizer: str = "none"
    own_threads: bool = False
    # A few cases take less time than the compiler's optimisations. With them, and without a sanitizer, the
    # kernels are those of a wheel.
    optimised: bool = True

    @property
    def _has_own_threads(self) -> bool:
        # ThreadSanitizer does not see what the threads of GNU OpenMP wait for.
        return self.own_threads or self.sanitizer == "thread" or not TARGETS[self.target].openmp

    def _flags(self, file: Path) -> list[str]:
        target = TARGETS[self.target]
        flags = [flag for flag in FLAGS[target.processor] if flag not in ("-O3", "-fPIC")]
        flags += ["-Wall", "-Wextra", f"-I{SOURCE}"]
        if file.parent == DRIVER:
            # The sanitizers see what the kernels do to its memory all the same.
            return [*flags, "-O0"]
        optimised = "-O3" if self.sanitizer == "none" else "-O1"
        flags += [*SANITIZERS[self.sanitizer], optimised if self.optimised else "-O0"]
        return [*flags, "-DFCG_OWN_THREADS"] if self._has_own_threads else flags

    def _link_flags(self) -> list[str]:
        target = TARGETS[self.target]
        flags = [*SANITIZERS[self.sanitizer], "-pthread", *(["-static"] if target.static else [])]
        return flags if self._has_own_threads else [*flags, "-fopenmp"]

    def _compiler(self) -> list[str]:
        names = TARGETS[self.target].compilers
        if names is not _HERE:
            return [_tool(names)]
        try:
            return list(find_compiler().command)
        except CompilerError as error:
            raise MissingToolError(f"the driver {error}") from None

    def compile(self, folder: Path, changed: Sequence[Path] = ()) -> Path:
        """Compile the driver and the kernels in ``folder``, two files at a time, and return the program.

        ``changed`` are files that replace those of their names. Files that ``folder`` already contains in
        compiled form are not compiled again. Raises MissingToolError without a compiler, and CompilationError
        if it fails.
        """
        compiler = self._compiler()
        files = {file.name: file for file in (DRIVER / "main.cpp", *SOURCE.glob("*.cpp"), *changed)}
        folder.mkdir(parents=True, exist_ok=True)
        objects = {name: folder / f"{name}.o" for name in files}

        def compile_one(name: str) -> None:
            if files[name] in changed or not objects[name].exists():
                _compile(
                    [*compiler, *self._flags(files[name]), "-c", str(files[name]), "-o", str(objects[name])]
                )

        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(compile_one, files))
        program = folder / TARGETS[self.target].program
        _compile([*compiler, *map(str, objects.values()), *self._link_flags(), "-o", str(program)])
        return program

    def command(self, program: Path) -> list[str]:
        """Return the command that runs ``program``. Raises MissingToolError without an emulator."""
        emulators = TARGETS[self.target].emulators
        words = [str(program)]
        if emulators:
            words = [_tool(emulators), *words]
        # ThreadSanitizer needs its memory where a random layout can put something else.
        if self.sanitizer == "thread" and _can_fix_the_layout():
            words = ["setarch", "-R", *words]
        return words


def _can_fix_the_layout() -> bool:
    """Return whether programs can be run without a random layout of memory. Some containers forbid it."""
    if not shutil.which("setarch"):
        return False
    return subprocess.run(["setarch", "-R", "true"], capture_output=True, check=False).returncode == 0


def _tool(names: Sequence[str]) -> str:
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise MissingToolError(f"{names[0]} is not installed")


def _compile(command: list[str]) -> None:
    try:
        process = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompilationError(f"{command[0]}: {error.strerror}") from None
    # Warnings of the linker are about libraries of the system.
    if process.returncode or (process.stderr and "-c" in command):
        raise CompilationError(f"{command[0]}: {first_error(process.stderr, process.returncode)}")


def run(build: Build, program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the driver with ``arguments``, and return the process with what it printed.

    A driver that ends without saying that all cases pass has failed, whatever its exit code.
    """
    environment = {**os.environ, **OPTIONS, "WINEPREFIX": str(program.parent / "wine")}
    # A library that was loaded before would come before the sanitizer's.
    environment.pop("LD_PRELOAD", None)
    process = subprocess.run(
        [*build.command(program), *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if process.returncode == 0 and not process.stdout.endswith(": all pass\n"):
        process.returncode = 1
    return process


def sanitize(build: Build, *arguments: str) -> int:
    """Compile the driver, run it with ``arguments``, print its results, and return an exit code."""
    done = "not compiled"
    try:
        with tempfile.TemporaryDirectory() as folder:
            program = build.compile(Path(folder))
            done = "compiled, not run"
            build.command(program)
            process = run(build, program, *arguments)
    except (MissingToolError, CompilationError, OSError) as error:
        print(f"{done}: {error}", file=sys.stderr)
        return NOT_RUN
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print(process.stdout, end="")
    print(process.stderr, end="", file=sys.stderr)
    return process.returncode


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a number from {least} to {most}, got {text!r}")
        return int(text)

    return number


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels.cpu.sanitize", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--sanitizer", choices=SANITIZERS, default="none")
    parser.add_argument("--target", choices=["native", *TARGETS], default="native")
    parser.add_argument("--own-threads", action="store_true", help="use no OpenMP")
    most = 10**9
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--seconds", type=_number(1, most), help="run random cases for this long")
    size.add_argument("--cases", type=_number(1, most), help="run so many cases (default: 200)")
    size.add_argument("--case", type=_number(0, 2**63), help="run this case alone")
    parser.add_argument("--seed", type=_number(0, 2**63), default=0)
    parser.add_argument("--kernel", help="test this function alone")
    parser.add_argument(
        "--callers", type=_number(1, 64), default=1, help="threads that call the kernels at once"
    )
    options = parser.parse_args(words)
    if options.sanitizer != "none" and (options.target in TARGETS and TARGETS[options.target].emulators):
        parser.error(f"--sanitizer needs a target that this processor runs itself, got {options.target}")
    try:
        target = native() if options.target == "native" else options.target
    except MissingToolError as error:
        print(error, file=sys.stderr)
        return NOT_RUN
    arguments = [
        word
        for name in ("seconds", "cases", "case", "seed", "kernel", "callers")
        if getattr(options, name) is not None
        for word in (f"--{name}", str(getattr(options, name)))
    ]
    return sanitize(Build(target, options.sanitizer, options.own_threads), *arguments)


if __name__ == "__main__":
    sys.exit(main())
