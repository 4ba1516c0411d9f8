"""Small C++ sources, and programs that stand for a C++ compiler, for the tests of what is compiled."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

REAL = shutil.which("c++")

# How a function is declared that a library shows.
SHOWN = 'extern "C" __attribute__((visibility("default")))'
# Of the first file that is compiled, ``answer``; of the second one, the instructions that it may use.
SOURCES = {
    "answer.h": "#define ANSWER 42\n",
    "answer.cpp": f'#include "answer.h"\n{SHOWN} int answer() {{ return ANSWER; }}\n',
    "vectors.cpp": (
        f"{SHOWN} int vector_bits() {{\n#ifdef __AVX512F__\n    return 512;\n#elif defined(__AVX2__)\n"
        "    return 256;\n#else\n    return 128;\n#endif\n}\n"
    ),
}


def write_sources(folder: Path, **changed: str) -> Path:
    """Write SOURCES into ``folder``; ``answer="..."`` replaces the text of answer.cpp."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in SOURCES.items():
        (folder / name).write_text(changed.get(name.removesuffix(".cpp"), text))
    return folder


def program(file: Path, script: str) -> Path:
    """Write a shell script that can be executed. REAL is the machine's compiler."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\nREAL='{REAL}'\n{script}\n")
    file.chmod(0o755)
    return file


def on_compiling(file: Path, script: str) -> Path:
    """Write a compiler that runs ``script`` before it compiles answer.cpp."""
    return program(file, f'case "$*" in *"/answer.cpp "*) {script} ;; esac\nexec "$REAL" "$@"')


def counting(file: Path) -> Path:
    """Write a compiler that adds a line to ``file`` + ".log" each time it compiles."""
    return on_compiling(file, f"echo compiled >> '{file}.log'")


def count_of(file: Path) -> int:
    log = file.with_name(f"{file.name}.log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_for_end(process: int) -> None:
    """Wait until a process that is not a child of this one has ended; end it and fail if it does not."""
    for _ in range(2000):
        if not _is_running(process):
            return
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    raise TimeoutError("a process of the compiler was left running")


def _is_running(process: int) -> bool:
    """Return whether the process exists and has not ended. One that nobody waits for leaves its number."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_for(file: Path) -> str:
    """Wait until ``file`` exists and return its text. It must appear with all of its text."""
    for _ in range(6000):
        if file.exists():
            return file.read_text()
        time.sleep(0.01)
    raise TimeoutError(f"{file} did not appear")


def listing(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.exists() else []
