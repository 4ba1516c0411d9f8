"""Tests of finding and running a C++ compiler: the variable CXX, failures in one line, hangs and hashes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastcyclegan.kernels.cpu import _compiler
from fastcyclegan.kernels.cpu._compiler import (
    CANDIDATES,
    Compiler,
    CompilerError,
    compile_library,
    find_compiler,
    fingerprint,
    first_error,
)
from tests.kernels.cpu.compilers import REAL, program, wait_for_end, write_sources

needs_compiler = pytest.mark.skipif(REAL is None, reason="needs a C++ compiler")
VERSION = 'echo "version of $0"; echo more'


@pytest.fixture(autouse=True)
def _no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's compilers; tests put their own ones into the only folder of PATH."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def problem(function: Callable[[], object]) -> str:
    """Return the message of the CompilerError that ``function`` raises, which must be one line."""
    with pytest.raises(CompilerError) as caught:
        function()
    message = str(caught.value)
    assert message.startswith("needs ")
    assert message.isprintable()
    return message


def compiler_of(file: Path) -> Compiler:
    return Compiler((str(file),), "1.0")


@pytest.mark.parametrize("first", range(len(CANDIDATES)))
def test_the_first_candidate_is_taken(first: int, tmp_path: Path) -> None:
    for name in CANDIDATES[first:]:
        program(tmp_path / "bin" / name, VERSION)
    path = f"{tmp_path}/bin/{CANDIDATES[first]}"
    assert find_compiler() == Compiler((path,), f"version of {path}")


@pytest.mark.parametrize("blank", [None, "", "  "])
def test_no_compiler(blank: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if blank is not None:
        monkeypatch.setenv("CXX", blank)
    assert problem(find_compiler) == (
        "needs a C++ compiler, and none was found (c++, g++, clang++; or set CXX)"
    )


def test_cxx_can_have_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin" / "ccache", 'exec "$@"')
    program(tmp_path / "bin" / "g++", 'echo "$# of" "$@"')
    monkeypatch.setenv("CXX", "ccache g++ '-DNAME=two words'")
    compiler = find_compiler()
    assert compiler.command == (f"{tmp_path}/bin/ccache", "g++", "-DNAME=two words")
    assert compiler.version == "2 of -DNAME=two words --version"


def test_cxx_can_be_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler runs in another folder, so the path is made absolute."""
    program(tmp_path / "my" / "compiler", VERSION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXX", "my/compiler")
    assert find_compiler().command == (f"{tmp_path}/my/compiler",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense -O2", "CXX='nonsense -O2' was not found; correct or unset CXX"),
        ("/no/such/g++", "CXX='/no/such/g++' was not found; correct or unset CXX"),
        ("g++ 'x", 'CXX="g++ \'x" cannot be read (No closing quotation); correct or unset CXX'),
    ],
)
def test_nonsense_in_cxx(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another compiler is not taken instead of the one that was asked for."""
    program(tmp_path / "bin" / "c++", VERSION)
    monkeypatch.setenv("CXX", text)
    assert problem(find_compiler) == f"needs a C++ compiler, and {message}"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'error: no licence'; exit 3", "fails: error: no licence"),
        ("exit 3", "fails: it ends with status 3"),
        ("kill -9 $$", "fails: it ends with status -9"),
        ("exit 0", "fails: it does not print its version"),
    ],
)
def test_a_compiler_without_a_version(script: str, message: str, tmp_path: Path) -> None:
    path = program(tmp_path / "bin" / "c++", script)
    assert problem(find_compiler) == f"needs a C++ compiler, and the compiler {path} {message}"


def test_a_compiler_that_is_no_program(tmp_path: Path) -> None:
    path = program(tmp_path / "bin" / "c++", "")
    path.write_bytes(b"\x7fELF, of another kind of processor")
    assert problem(find_compiler).endswith(f"the compiler {path} fails: Exec format error")


GCC = """\
In file included from a.h:1,
                 from a.cpp:2:
b.h: In function 'int f()':
b.h:3:1: warning: an error: no
a.cpp:5:12:\x1b error: 'x' was not declared in this scope
    5 |     return x;
a.cpp:6:1: error: second
"""
LINKER = """\
/usr/bin/ld: a.o: in function `f':
a.cpp:(.text+0x9): undefined reference to `g'
collect2: error: ld returned 1 exit status
"""
CLANG = """\
/usr/bin/ld: cannot find -lnothing: No such file or directory
clang: error: linker command failed with exit code 1 (use -v to see invocation)
"""


@pytest.mark.parametrize(
    ("messages", "line"),
    [
        (GCC, "a.cpp:5:12: error: 'x' was not declared in this scope"),
        (LINKER, "a.cpp:(.text+0x9): undefined reference to `g'"),
        (CLANG, "/usr/bin/ld: cannot find -lnothing: No such file or directory"),
        ("\n\nIllegal instruction\n", "Illegal instruction"),
        ("a.h:1: warning: w\n", "it ends with status 1"),
        ("", "it ends with status 1"),
        ("x" * 1000, "x" * 300),
    ],
    ids=["gcc", "linker", "clang", "no error", "warning", "nothing", "long"],
)
def test_the_first_error_is_found(messages: str, line: str) -> None:
    assert first_error(messages, 1) == line


@needs_compiler
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('#include "missing.h"', "answer.cpp:1:10: fatal error: "),
        ("#warning first\nint f() { return x; }", "answer.cpp:2:18: error: "),
    ],
)
def test_an_error_names_the_file_without_its_folder(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    source = write_sources(tmp_path / "source", answer=text)
    compiler = Compiler((str(REAL),), "1.0")
    line = problem(lambda: compile_library(compiler, "avx2", source, tmp_path / "x.so"))
    assert line.startswith(f"needs a C++ compiler, and the compiler {REAL} fails: {message}")


def test_a_compiler_that_writes_nothing(tmp_path: Path) -> None:
    compiler = compiler_of(program(tmp_path / "lazy", "exit 0"))
    source = write_sources(tmp_path / "source")
    line = problem(lambda: compile_library(compiler, "avx2", source, tmp_path / "x.so"))
    assert line.endswith(f"{tmp_path}/lazy fails: it writes no library")


def test_no_sources(tmp_path: Path) -> None:
    compiler = compiler_of(program(tmp_path / "unused", "exit 1"))
    line = problem(lambda: compile_library(compiler, "avx2", tmp_path / "source", tmp_path / "x.so"))
    assert line == (f"needs its C++ files, and there are none in {tmp_path}/source; reinstall fastcyclegan")


def test_flags(tmp_path: Path) -> None:
    """The compiler gets the processor's instructions and no -ffast-math, and links without OpenMP."""
    log = tmp_path / "log"
    compiler = compiler_of(program(tmp_path / "logging", f'echo "$LC_ALL $@" >> {log}; : > x.so'))
    source = write_sources(tmp_path / "source")
    lines = {}
    for processor in ("avx2", "avx512", "amx"):
        compile_library(compiler, processor, source, tmp_path / "x.so")
        *compilations, lines[processor] = log.read_text().splitlines()
        assert lines[processor] == "C -shared -o x.so answer.o vectors.o"
        log.unlink()
        answer, vectors = sorted(compilations, key=lambda line: "vectors" in line)
        assert vectors == answer.replace("answer", "vectors")
        lines[processor] = answer
    end = f" -c {source}/answer.cpp -o answer.o"
    assert lines["avx2"].startswith("C -std=c++17 -O3 -fvisibility=hidden ")
    assert " -fPIC " in lines["avx2"]
    assert lines["avx2"].endswith(f"-mbmi2{end}")
    assert lines["avx512"] == lines["amx"]
    assert lines["amx"].endswith(f"-mavx512vl -mprefer-vector-width=512{end}")
    assert "-mavx512" not in lines["avx2"]
    assert "fast-math" not in lines["amx"]


def test_files_are_compiled_at_the_same_time(tmp_path: Path) -> None:
    """Each compilation waits until both have started."""
    lines = (
        "PATH=/usr/bin:/bin",
        'case "$*" in *" -c "*) ;; *) : > x.so; exit ;; esac',
        f": > {tmp_path}/$$.started",
        f'while [ "$(ls {tmp_path}/*.started | wc -l)" -lt 2 ]; do sleep 0.01; done',
    )
    compiler = compiler_of(program(tmp_path / "meeting", "\n".join(lines)))
    compile_library(compiler, "avx2", write_sources(tmp_path / "source"), tmp_path / "x.so")


def test_the_other_compilations_end_if_one_fails(tmp_path: Path) -> None:
    started = tmp_path / "started"
    lines = (
        'case "$*" in *"/vectors.cpp "*)',
        f"echo $$ > {started}.new; /bin/mv {started}.new {started}; exec /bin/sleep 1000 ;; esac",
        f"while [ ! -e {started} ]; do /bin/sleep 0.01; done",
        "echo 'error: no'; exit 1",
    )
    compiler = compiler_of(program(tmp_path / "failing", "\n".join(lines)))
    source = write_sources(tmp_path / "source")
    line = problem(lambda: compile_library(compiler, "avx2", source, tmp_path / "x.so"))
    assert line.endswith(f"the compiler {tmp_path}/failing fails: error: no")
    wait_for_end(int(started.read_text()))


def test_a_compiler_that_hangs_is_killed_with_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = tmp_path / "started"
    compiler = compiler_of(
        program(
            tmp_path / "hanging",
            f"/bin/sleep 1000 & echo $! > {started}.new\n/bin/mv {started}.new {started}\nwait",
        )
    )

    class Impatient(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            """Let the time pass at once, but not before the compiler has started its own process."""
            if timeout is None:
                return super().wait()
            assert 60 < timeout <= 120
            while not started.exists():
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(_compiler.subprocess, "Popen", Impatient)
    source = write_sources(tmp_path / "source")
    line = problem(lambda: compile_library(compiler, "avx2", source, tmp_path / "x.so"))
    assert line.endswith(f"the compiler {tmp_path}/hanging has not finished after 120 s")
    wait_for_end(int(started.read_text()))


def test_a_process_that_the_compiler_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    """Caches of compilers start a server, which keeps the compiler's output open."""
    left = tmp_path / "left"
    program(tmp_path / "bin" / "c++", f"/bin/sleep 1000 & echo $! > {left}; echo 1.0")
    try:
        assert find_compiler().version == "1.0"
    finally:
        os.kill(int(left.read_text()), 9)


def test_the_fingerprint_changes_with_everything_that_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_sources(tmp_path / "source")
    compiler = Compiler(("/usr/bin/c++",), "c++ 12.2.0")
    base = fingerprint(compiler, "avx2", source)
    (source / "notes.txt").write_text("not compiled")
    assert fingerprint(compiler, "avx2", source) == base

    def change(file: str, text: str) -> str:
        before = (source / file).read_text() if (source / file).exists() else None
        (source / file).write_text(text)
        changed = fingerprint(compiler, "avx2", source)
        if before is None:
            (source / file).unlink()
        else:
            (source / file).write_text(before)
        return changed

    def patched(owner: Any, name: str, value: object) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            return fingerprint(compiler, "avx2", source)

    longer = {**_compiler.FLAGS, "avx2": (*_compiler.FLAGS["avx2"], "-O2")}
    changed = [
        change("answer.cpp", "int x;"),
        change("answer.h", "#define ANSWER 43"),
        change("new.cpp", ""),
        change("new.h", ""),
        fingerprint(compiler, "avx512", source),
        fingerprint(compiler, "amx", source),
        fingerprint(dataclasses.replace(compiler, version="c++ 12.2.1"), "avx2", source),
        fingerprint(dataclasses.replace(compiler, command=("/usr/bin/c++", "-g")), "avx2", source),
        patched(_compiler.platform, "libc_ver", lambda: ("glibc", "2.99")),
        patched(_compiler, "FLAGS", longer),
    ]
    assert len({base, *changed}) == len(changed) + 1
    assert fingerprint(compiler, "avx2", source) == base
