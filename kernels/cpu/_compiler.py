"""Find the machine's C++ compiler, and compile a folder of C++ files into a shared library with it.

Imports only the standard library, because setup.py uses it to build the libraries of a wheel.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CANDIDATES = ("c++", "g++", "clang++")
SECONDS = 120
_WINDOWS = sys.platform == "win32"

# Without -ffast-math, because NaN and infinity must stay what they are.
_FLAGS = (
    *("-std=c++17", "-O3", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    *(() if _WINDOWS else ("-fPIC", "-pipe")),
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
# The flags for each class of processors. There is no -mtune, so one file is right for all of a class. For
# "amx", only the choice between the kernels and oneDNN differs.
FLAGS = {
    "avx2": (*_FLAGS, *_AVX2),
    "avx512": (*_FLAGS, *_AVX2, *_AVX512),
    "amx": (*_FLAGS, *_AVX2, *_AVX512),
    "neon": (*_FLAGS, "-march=armv8-a"),
}
# Nothing is compiled or linked with -fopenmp. It would record the compiler's own OpenMP runtime, and where
# PyTorch brings a runtime of another name (libgomp-a34b3233.so.1, libiomp5.so), the process would have two,
# each with its own threads. On Linux the sources call the functions of GNU OpenMP, which LLVM's and Intel's
# runtimes have as well. They stay undefined until the library is loaded, and then the runtime of PyTorch
# serves them: PyTorch loads its dependencies for the whole process. On Windows, MinGW's own runtime becomes a
# part of the library.
_LINK = ("-shared", "-static") if _WINDOWS else ("-shared",)


class CompilerError(Exception):
    """Why there is no library. The message completes a sentence: "needs a C++ compiler, and ..."."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command, which begins with an absolute path, and the first line of its version."""

    command: tuple[str, ...]
    version: str

    def error(self, problem: str) -> CompilerError:
        return _error(self.command, problem)


def _error(command: tuple[str, ...], problem: str) -> CompilerError:
    return CompilerError(f"needs a C++ compiler, and the compiler {shlex.join(command)} {problem}")


def find_compiler() -> Compiler:
    """Return the compiler that ``CXX`` names, or the first of CANDIDATES that is installed.

    ``CXX`` can have arguments, as in ``CXX="ccache g++"``. Raises CompilerError if there is no compiler, or
    if it cannot even print its version.
    """
    command = _command()
    version = _run(command, [("--version",)], Path("/")).strip()
    if not version:
        raise _error(command, "fails: it does not print its version")
    return Compiler(command, version.splitlines()[0])


def _command() -> tuple[str, ...]:
    text = os.environ.get("CXX", "")
    try:
        words = shlex.split(text)
    except ValueError as error:
        reason = f"CXX={text!r} cannot be read ({error}); correct or unset CXX"
        raise CompilerError(f"needs a C++ compiler, and {reason}") from None
    for name in words[:1] if words else CANDIDATES:
        path = shutil.which(name)
        if path is not None:
            return (str(Path(path).absolute()), *words[1:])
    if words:
        raise CompilerError(f"needs a C++ compiler, and CXX={text!r} was not found; correct or unset CXX")
    names = ", ".join(CANDIDATES)
    raise CompilerError(f"needs a C++ compiler, and none was found ({names}; or set CXX)")


def fingerprint(compiler: Compiler, processor: str, source: Path) -> str:
    """Return a hash of all that decides what a library compiled from ``source`` contains.

    That is the files, the flags, the compiler, the class of processors, and the C library.
    """
    built_by = [FLAGS[processor], _LINK, compiler.command, compiler.version, processor, platform.libc_ver()]
    return _hash([sources_of(source), built_by])


def sources_of(source: Path) -> str:
    """Return a hash of the files that are compiled in the folder ``source``."""
    return _hash(
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(source, "cpp", "h")}
    )


def _hash(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def library_suffix() -> str:
    """Return how the names of shared libraries end on this system."""
    return {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


def _files(source: Path, *suffixes: str) -> list[Path]:
    return sorted(file for suffix in suffixes for file in source.glob(f"*.{suffix}"))


def compile_library(compiler: Compiler, processor: str, source: Path, library: Path) -> None:
    """Compile the C++ files in the folder ``source`` for ``processor``, and write ``library``.

    The files are compiled at the same time. Object files are left in the folder of ``library``. Raises
    CompilerError with the compiler's first error.
    """
    files = [file.absolute() for file in _files(source, "cpp")]
    if not files:
        raise CompilerError(f"needs its C++ files, and there are none in {source}; reinstall fastcyclegan")
    objects = [f"{file.stem}.o" for file in files]
    compilations = [
        (*FLAGS[processor], "-c", str(file), "-o", name) for file, name in zip(files, objects, strict=True)
    ]
    try:
        _run(compiler.command, compilations, library.parent)
        _run(compiler.command, [(*_LINK, "-o", library.name, *objects)], library.parent)
    except CompilerError as error:
        # The names of the files suffice.
        raise CompilerError(str(error).replace(f"{source.absolute()}/", "")) from None
    if not library.exists():
        raise compiler.error("fails: it writes no library")


def _run(command: tuple[str, ...], arguments: list[tuple[str, ...]], folder: Path) -> str:
    """Run the compiler in ``folder``, with each of the ``arguments`` at the same time.

    Returns what the last one prints. Raises CompilerError if any of them fails, or takes too long.
    """
    end = time.monotonic() + SECONDS
    text = ""
    processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    with contextlib.ExitStack() as outputs:
        try:
            for each in arguments:
                # Not a pipe, because what the compiler leaves running (a cache's server) can keep that open.
                output = outputs.enter_context(_temporary_file())
                processes.append((_start([*command, *each], folder, output), output))
            for process, output in processes:
                status = process.wait(end - time.monotonic())
                output.seek(0)
                text = output.read().decode(errors="replace")
                if status:
                    raise _error(command, f"fails: {first_error(text, status)}")
        except OSError as error:
            raise _error(command, f"fails: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise _error(command, f"has not finished after {SECONDS} s") from None
        finally:
            for process, _ in processes:
                _stop(process)
    return text


def _temporary_file() -> IO[bytes]:
    """Return a file without a name: in memory where that is possible, because disks can be full."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("output"), "w+b")
    return tempfile.TemporaryFile()


def _start(command: list[str], folder: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, so that its own processes can be ended as well."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        process_group=None if _WINDOWS else 0,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started, if it is still running."""
    if process.poll() is None:
        if sys.platform == "win32":
            process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def first_error(messages: str, status: int) -> str:
    """Return the first error of a compiler's ``messages``, as one line.

    This is not a line about where a file was included, a warning, or that the linker failed.
    """
    lines = ["".join(letter for letter in line if letter.isprintable()) for line in messages.splitlines()]
    context = re.compile(
        r"\s*$|In file included from|\s+from |.*\b(warning|note): |.*: [Ii]n (member )?function|collect2: "
        r"|.*linker command failed"
    )
    lines = [line.strip() for line in lines if not context.match(line)]
    errors = [line for line in lines if re.search(r"\berror: ", line)]
    if not lines:
        return f"it ends with status {status}"
    return [*errors, *lines][0][:300]
