"""Tests of the C++ kernels with sanitizers, with their own threads, and for other processors."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernels.cpu import sanitize
from tests.kernels.cpu.compilers import program
from tests.kernels.cpu.sanitize import SOURCE, Build, MissingToolError, run

ROOT = Path(__file__).parents[3]
# Every function that Python calls.
FUNCTIONS = len(re.findall(r"^FCG_FUNCTION \w+ fcg_\w+\(", (SOURCE / "kernels.h").read_text(), re.MULTILINE))

# The tests that call every kernel on tensors.
KERNELS = ("functions", "norm_gradients", "convolution", "convolution_gradients")

Compiled = Callable[[Build], Path]


def target() -> str:
    """Return the target of this processor, or skip the test if there is none."""
    try:
        return sanitize.native()
    except MissingToolError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Return the program of a build, which is compiled once."""
    folder, programs = tmp_path_factory.mktemp("driver"), dict[Build, Path]()

    def program(build: Build) -> Path:
        if build not in programs:
            try:
                to = folder / str(len(programs))
                for other, done in programs.items():
                    if other.target == build.target and not to.exists():
                        # The driver itself is compiled in the same way for all builds of a target.
                        to.mkdir()
                        os.link(done.with_name("main.cpp.o"), to / "main.cpp.o")
                programs[build] = build.compile(to)
                build.command(programs[build])
            except MissingToolError as error:
                pytest.skip(str(error))
        return programs[build]

    return program


def check(build: Build, program: Path, *arguments: str) -> None:
    """Run the driver, all of whose cases must pass, and must call every function."""
    process = run(build, program, *arguments)
    assert process.returncode == 0, process.stdout + process.stderr
    assert re.fullmatch(rf"\d+ cases of {FUNCTIONS} functions, seed \d+: all pass\n", process.stdout)
    assert process.stderr == ""


def test_the_sanitizers_of_addresses_and_of_undefined_behaviour_find_nothing(compiled: Compiled) -> None:
    build = Build(target(), "address", optimised=False)
    check(build, compiled(build), "--cases", "100", "--callers", "2")


def test_the_sanitizer_of_threads_finds_nothing(compiled: Compiled) -> None:
    build = Build(target(), "thread", optimised=False)
    check(build, compiled(build), "--cases", "80", "--callers", "2")


def test_own_threads(compiled: Compiled) -> None:
    """The bits are the same, even of calls that find the threads in use."""
    build = Build(target(), own_threads=True, optimised=False)
    check(build, compiled(build), "--cases", "400", "--callers", "3")


def test_neon(compiled: Compiled) -> None:
    build = Build("neon")
    check(build, compiled(build), "--cases", "100")


def test_a_planted_fault_is_found_and_repeated(compiled: Compiled, tmp_path: Path) -> None:
    """One sign of Winograd's transform is changed, in a copy that is compiled into the rest."""
    build = Build(target(), own_threads=True, optimised=False)
    folder = compiled(build).parent
    (tmp_path / "source").mkdir()
    for file in SOURCE.iterdir():
        text = file.read_text()
        if file.name == "winograd.h":
            assert "odd = B * (d3 - AA * d1)" in text
            text = text.replace("odd = B * (d3 - AA * d1)", "odd = B * (d3 + AA * d1)")
        (tmp_path / "source" / file.name).write_text(text)
    (tmp_path / "build").mkdir()
    for file in folder.glob("*.o"):
        os.link(file, tmp_path / "build" / file.name)
    (tmp_path / "build" / "winograd.cpp.o").unlink()
    program = build.compile(tmp_path / "build", [tmp_path / "source" / "winograd.cpp"])
    process = run(build, program, "--cases", "100")
    assert process.returncode == 1
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    message, _, command = line.partition("; driver: repeat with ")
    assert re.match(r"fcg_winograd: N=.* y\[\d+, \d+, \d+, \d+\] is \S+, expected \S+ within \S+$", message)
    again = run(build, program, *shlex.split(command))
    assert (again.returncode, again.stderr) == (1, process.stderr)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--cases",), "driver: no value for: --cases"),
        (("--cases", "x"), "driver: not a number: x"),
        (("--kernel", "fcg_x"), "driver: no such kernel: fcg_x"),
        (("--x", "1"), "driver: unknown option: --x"),
        (("--callers", "0"), "driver: --callers must be from 1 to 64, got 0"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], problem: str, compiled: Compiled) -> None:
    build = Build(target(), own_threads=True, optimised=False)
    process = run(build, compiled(build), *arguments)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.splitlines()[0] == problem


def test_the_script_passes_arguments_on(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that a failure is repeated with are among them."""
    build = Build(target(), own_threads=True, optimised=False)
    monkeypatch.setattr(Build, "compile", lambda *_: compiled_program)
    compiled_program = compiled(build)
    words = "--own-threads --kernel fcg_pad --seed 3 --case 8 --callers 2".split()
    assert sanitize.main(words) == 0
    assert capsys.readouterr() == ("2 cases of 1 functions, seed 3: all pass\n", "")
    assert sanitize.main(["--own-threads", "--kernel", "fcg_x"]) == 2
    assert capsys.readouterr().err.startswith("driver: no such kernel: fcg_x\n")


def test_a_driver_that_ends_too_early_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wine's exit code after a crash can be 0."""
    monkeypatch.setattr(Build, "compile", lambda *_: Path("/bin/true"))
    assert sanitize.main(["--target", "avx2", "--cases", "1"]) == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--cases", "0"], "argument --cases: must be a number from 1 to 1000000000, got '0'"),
        (["--seed", "-1"], "argument --seed: must be a number from 0 to 9223372036854775808, got '-1'"),
        (["--cases", "1", "--case", "1"], "argument --case: not allowed with argument --cases"),
        (
            ["--target", "neon", "--sanitizer", "thread"],
            "--sanitizer needs a target that this processor runs itself, got neon",
        ),
    ],
)
def test_wrong_arguments_of_the_script(
    words: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sanitize.main(words)
    assert (
        capsys.readouterr().err.splitlines()[-1] == f"python -m tests.kernels.cpu.sanitize: error: {problem}"
    )


def test_a_compiler_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = 'case "$1" in --version) echo 1.0 ;; *) echo "a.cpp:1: error: no" >&2; exit 1 ;; esac'
    compiler = program(tmp_path / "broken", script)
    monkeypatch.setenv("CXX", str(compiler))
    assert sanitize.main(["--target", "avx2"]) == sanitize.NOT_RUN
    assert capsys.readouterr() == ("", f"not compiled: {compiler}: a.cpp:1: error: no\n")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert sanitize.main(["--target", "avx2"]) == sanitize.NOT_RUN
    text = "not compiled: the driver needs a C++ compiler, and CXX='/nowhere/c++' was not found"
    assert capsys.readouterr().err.startswith(text)


def test_a_missing_tool_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitize.main(["--target", "neon"]) == sanitize.NOT_RUN
    assert capsys.readouterr() == ("", "not compiled: aarch64-linux-gnu-g++ is not installed\n")


# --- At length ----------------------------------------------------------------------------------------------


def _targets() -> list[str]:
    try:
        return sanitize.supported()
    except MissingToolError:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["none", "address", "thread"])
@pytest.mark.parametrize("name", _targets())
def test_every_class_for_a_minute(name: str, sanitizer: str, compiled: Compiled) -> None:
    build = Build(name, sanitizer)
    check(build, compiled(build), "--seconds", "60", "--callers", "2", "--seed", str(os.getpid()))


@pytest.mark.slow
def test_neon_for_a_minute(compiled: Compiled) -> None:
    build = Build("neon")
    check(build, compiled(build), "--seconds", "60", "--seed", str(os.getpid()))


@pytest.mark.slow
def test_windows(compiled: Compiled) -> None:
    """The kernels and the driver compile without a warning; without wine, the test is skipped after that."""
    build = Build("windows")
    # The first call makes wine's folder, and says so.
    run(build, compiled(build), "--cases", "1")
    # Threads that call the kernels end.
    check(build, compiled(build), "--cases", "400", "--callers", "3")


@pytest.mark.slow
def test_sanitizers_find_nothing_from_python(tmp_path: Path) -> None:
    """The tests of the kernels on tensors pass with a library that is compiled for sanitizers.

    Layouts that are not dense, and memory that PyTorch allocates, come on top of what the driver tests.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    libraries = [_library_of(compiler, name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    environment = {
        **os.environ,
        "CXX": f"{compiler} -fsanitize=address,undefined -fno-sanitize-recover=all",
        "LD_PRELOAD": " ".join(libraries),
        # A test asks for more memory than there is. Python keeps memory until it ends.
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:log_path={tmp_path}/log",
        "UBSAN_OPTIONS": f"log_path={tmp_path}/log",
    }
    tests = [f"tests/kernels/cpu/test_{name}.py" for name in KERNELS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/base"]
    process = subprocess.run([*command, *tests], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert not [log.read_text() for log in tmp_path.glob("log*")]
    assert process.returncode == 0, process.stdout.decode()
    (library,) = tmp_path.glob("cpp/*.so")
    assert b"__asan_" in library.read_bytes()
    assert b"__ubsan_" in library.read_bytes()


def _library_of(compiler: str, name: str) -> str:
    command = [compiler, f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"{name} is not installed")
    return path
