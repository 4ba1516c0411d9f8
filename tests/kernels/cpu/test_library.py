"""Tests of the compiled library: when it is compiled, where it is kept, and when PyTorch has to do without.

The libraries are small ones. Processes are forked from this one where that suffices, because importing torch
takes longer than a test.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from fastcyclegan.kernels import _cache
from fastcyclegan.kernels.cpu import compiled_library, library, processors
from fastcyclegan.kernels.cpu._compiler import CompilerError
from tests.kernels.cpu.compilers import (
    REAL,
    SHOWN,
    count_of,
    counting,
    listing,
    on_compiling,
    program,
    wait_for,
    wait_for_end,
    write_sources,
)

ROOT = Path(__file__).parents[3]

compiles = pytest.mark.skipif(
    not processors.processor() or REAL is None, reason="needs a C++ compiler, and a processor with AVX2"
)


class Place:
    """A folder for each thing that a test uses: sources, the cache, temporary files and a compiler."""

    def __init__(self, folder: Path) -> None:
        self.source = write_sources(folder / "source")
        self.cache = folder / "cache" / "fastcyclegan" / "cpu"
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.compiler = folder / "compiler"

    def load(self) -> ctypes.CDLL:
        return compiled_library.load(self.source, self.cache, processors.processor())

    def file(self) -> Path:
        """Return the only file in the cache."""
        (name,) = listing(self.cache)
        return self.cache / name


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Folders of this test, with a compiler that counts how often it compiles. No temporary file is left."""
    place = Place(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(place.temporary))
    monkeypatch.setattr(library, "_answer", None)
    monkeypatch.setattr(library, "SOURCE", place.source)
    monkeypatch.setattr(library, "cache_folder", lambda name: place.cache)
    monkeypatch.setenv("CXX", str(counting(place.compiler)))
    yield place
    assert listing(place.temporary) == []


def forked(function: Callable[[], object]) -> int:
    """Start ``function`` in a forked process, and return its number. It ends with status 0 without errors."""
    process = os.fork()
    if process:
        return process
    signal.alarm(60)
    status = 1
    try:
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(process: int) -> int:
    """Wait for a forked process. Its status is 0, or negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def check_answer(place: Place) -> None:
    assert place.load().answer() == 42


def in_new_process(place: Place) -> None:
    """Load the library in another process: this one would get a library that it has loaded before."""
    assert status_of(forked(lambda: check_answer(place))) == 0


def refuse(number: int) -> Callable[..., NoReturn]:
    def function(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return function


# --- The processor ------------------------------------------------------------------------------------------


def test_other_systems_are_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert library.why_not_cpp() == (
        f"needs Linux, macOS or Windows on x86-64 or arm64, got {platform.system()} on riscv64"
    )


@pytest.mark.parametrize("limit", [None, "default"])
def test_no_compiler_is_sought_without_avx2(
    limit: str | None, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(compiled_library, "find_compiler", refuse(errno.EIO))
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    reason = "needs a processor with AVX2"
    if limit is not None:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", limit)
        reason += " (ATEN_CPU_CAPABILITY is 'default')"
    assert library.why_not_cpp() == reason
    with pytest.raises(RuntimeError, match=r"the C\+\+ kernels cannot be used: impl='cpp' needs a processor"):
        library.library()


# --- Compiling once -----------------------------------------------------------------------------------------


@compiles
def test_the_library_is_compiled_once_for_all_processes(place: Place) -> None:
    assert library.why_not_cpp() == ""
    loaded: Any = library.library()
    assert loaded.answer() == 42
    assert loaded.vector_bits() == {"amx": 512, "avx512": 512, "avx2": 256}[processors.processor()]
    assert library.why_not_cpp() == ""
    in_new_process(place)
    assert count_of(place.compiler) == 1
    assert place.file().name.startswith(f"kernels-{processors.processor()}-")
    (place.source / "answer.h").write_text("#define ANSWER 43\n")
    assert place.load().answer() == 43
    assert count_of(place.compiler) == 2


@compiles
def test_threads_compile_it_once(place: Place) -> None:
    start, reasons = threading.Barrier(4), []

    def ask() -> None:
        start.wait()
        reasons.append(library.why_not_cpp())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reasons == [""] * 4
    assert count_of(place.compiler) == 1


@compiles
def test_processes_can_compile_it_at_once(place: Place, tmp_path: Path) -> None:
    """Each compiler waits until the other one has started."""
    running = tmp_path / "running"
    running.mkdir()
    on_compiling(
        place.compiler, f': > {running}/$$; while [ "$(ls {running} | wc -l)" -lt 2 ]; do sleep 0.01; done'
    )
    processes = [forked(lambda: check_answer(place)) for _ in range(2)]
    assert [status_of(process) for process in processes] == [0, 0]
    assert len(listing(running)) == 2
    assert place.file().suffix == ".so"
    in_new_process(place)
    assert len(listing(running)) == 2


@compiles
def test_a_failure_is_remembered(place: Place) -> None:
    on_compiling(place.compiler, f"echo compiled >> {place.compiler}.log; echo 'a.cpp:1: error: no'; exit 1")
    for _ in range(2):
        assert library.why_not_cpp() == (
            f"needs a C++ compiler, and the compiler {place.compiler} fails: a.cpp:1: error: no"
        )
    assert count_of(place.compiler) == 1
    assert listing(place.cache) == []


@compiles
def test_torch_compile_takes_the_answer_as_a_constant(place: Place) -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def function(x: torch.Tensor) -> torch.Tensor:
        if library.why_not_cpp() == "" and processors.processor():
            return x + 1
        return x - 1

    assert function(torch.zeros(1)).item() == 1
    assert count_of(place.compiler) == 1


# --- A process that ends half-way ---------------------------------------------------------------------------


@compiles
def test_a_killed_build_leaves_nothing_that_is_loaded(place: Place, tmp_path: Path) -> None:
    """The process is killed while the compiler runs. The compiler ends later, and its library is not kept."""
    started, go_on = tmp_path / "started", tmp_path / "go_on"
    on_compiling(
        place.compiler,
        f"echo $$ > {started}.new; mv {started}.new {started}; while [ ! -e {go_on} ]; do sleep 0.01; done",
    )
    builder = forked(place.load)
    compiler = int(wait_for(started))
    os.kill(builder, signal.SIGKILL)
    assert status_of(builder) == -signal.SIGKILL
    go_on.write_text("")
    wait_for_end(compiler)
    (left,) = place.temporary.iterdir()
    assert listing(place.cache) == []
    in_new_process(place)
    assert place.file().suffix == ".so"
    # It could be that of a process that is still running, so it is removed only an hour later.
    assert listing(place.temporary) == [left.name]
    os.utime(left, (time.time() - 3700,) * 2)
    place.file().unlink()
    in_new_process(place)


@compiles
def test_ctrl_c_ends_the_compiler_and_leaves_nothing(place: Place, tmp_path: Path) -> None:
    started = tmp_path / "started"
    on_compiling(place.compiler, f"sleep 1000 & echo $! > {started}.new; mv {started}.new {started}; wait")

    def build() -> None:
        # A shell may have started the tests with the signal ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            library.why_not_cpp()
        # The next call tries again.
        os.environ["CXX"] = str(REAL)
        assert library.why_not_cpp() == ""

    builder = forked(build)
    inner = int(wait_for(started))
    os.kill(builder, signal.SIGINT)
    assert status_of(builder) == 0
    wait_for_end(inner)
    assert place.file().suffix == ".so"


@compiles
def test_old_files_are_removed(place: Place) -> None:
    """When a library is made, those not used for 30 days are removed, and what killed processes have left."""
    place.load()
    used = place.file()
    days = 24 * 3600
    old = {"kernels-avx2-1.so": 31 * days, ".x1.partial": 3700}
    new = {"kernels-avx2-2.so": 29 * days, ".x2.partial": 3500, "notes": 99 * days}
    for name, age in {**old, **new}.items():
        (place.cache / name).write_text("")
        os.utime(place.cache / name, (time.time() - age,) * 2)
    os.utime(used, (time.time() - 31 * days,) * 2)
    place.load()  # marks it as used
    (place.source / "answer.h").write_text("#define ANSWER 43\n")
    place.load()
    assert {used.name, *new} < set(listing(place.cache))
    assert not old.keys() & set(listing(place.cache))


# --- Damaged files ------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "shorter than a checksum": lambda data: data[:10],
    "half": lambda data: data[: len(data) // 2],
    "last byte": lambda data: data[:-1],
    "header": lambda data: b"\0" + data[1:],
    "code": lambda data: data[:4096] + bytes(byte ^ 1 for byte in data[4096:5000]) + data[5000:],
    "checksum": lambda data: data[:-32] + bytes(32),
}


@compiles
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_library_is_made_again(damage: Callable[[bytes], bytes], place: Place) -> None:
    in_new_process(place)
    file = place.file()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert file.read_bytes() != whole
    in_new_process(place)
    assert count_of(place.compiler) == 2
    assert len(place.file().read_bytes()) == len(whole)
    in_new_process(place)
    assert count_of(place.compiler) == 2


# --- Caches that cannot be used -----------------------------------------------------------------------------


@compiles
def test_no_cache_folder_can_be_made(place: Place, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    for count in (1, 2):
        assert place.load().answer() == 42
        assert count_of(place.compiler) == count


@compiles
@pytest.mark.parametrize("call", ["mkdir", "replace"])
def test_the_cache_cannot_be_written(call: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read-only when the folder is made, or full when the library is written."""
    monkeypatch.setattr(Path, call, refuse({"mkdir": errno.EROFS, "replace": errno.ENOSPC}[call]))
    assert place.load().answer() == 42
    assert listing(place.cache) == []


@compiles
def test_a_user_without_a_home_directory(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is a folder in the temporary folder that belongs to this user."""
    monkeypatch.setattr(library, "cache_folder", _cache.cache_folder)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", refuse_home)
    assert library.why_not_cpp() == ""
    folder = place.temporary / f"fastcyclegan-{os.getuid()}"
    assert len(listing(folder / "cpu")) == 1
    assert (folder / "cpu").stat().st_mode & 0o777 == 0o700
    (folder / "cpu" / listing(folder / "cpu")[0]).unlink()
    (folder / "cpu").rmdir()
    folder.rmdir()


def refuse_home() -> NoReturn:
    raise RuntimeError("Could not determine home directory.")


@compiles
def test_a_cache_with_noexec(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is kept there and copied to the temporary folder to be loaded, not compiled each time."""
    load = ctypes.CDLL

    def refuse_cache(name: str) -> ctypes.CDLL:
        if name.startswith(str(place.cache)):
            raise OSError(f"{name}: failed to map segment from shared object")
        return load(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse_cache)
    for _ in range(2):
        assert place.load().answer() == 42
    assert count_of(place.compiler) == 1
    monkeypatch.setattr(ctypes, "CDLL", load)
    in_new_process(place)
    assert count_of(place.compiler) == 1


@compiles
def test_no_folder_allows_execution(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> NoReturn:
        raise OSError(f"{name}: failed to map segment from shared object")

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert library.why_not_cpp() == (
        f"needs a C++ compiler, and the compiler {place.compiler} makes a library that cannot be loaded:"
        " failed to map segment from shared object"
    )


@compiles
def test_there_is_no_temporary_folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "mkdtemp", refuse(errno.EROFS))
    assert library.why_not_cpp() == ("needs to be compiled, which failed: [Errno 30] Read-only file system")


# --- Other users --------------------------------------------------------------------------------------------


def belongs_to_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


@compiles
@pytest.mark.parametrize("what", ["its folder", "the folder around it", "the file"])
@pytest.mark.parametrize("how", ["writes it", "owns it"])
def test_a_library_that_another_user_can_change_is_not_loaded(
    what: str, how: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other user has put a library there, with a good checksum, under the right name."""
    in_new_process(place)
    file = place.file()
    other = Place(place.cache.parents[2] / "other")
    write_sources(other.source, answer=f"{SHOWN} int answer() {{ return 666; }}")
    other.load()
    planted = other.file().read_bytes()
    file.write_bytes(planted)

    def check_planted() -> None:
        assert place.load().answer() == 666

    assert status_of(forked(check_planted)) == 0
    path = {"its folder": place.cache, "the folder around it": place.cache.parent, "the file": file}[what]
    if how == "writes it":
        path.chmod(0o777 if path.is_dir() else 0o666)
    else:
        belongs_to_another(path, monkeypatch)
    in_new_process(place)
    # Nothing is written to a folder in which another user could then replace it.
    is_replaced = what == "the file" and (how == "writes it" or os.getuid() == 0)
    assert (file.read_bytes() != planted) == is_replaced
    if is_replaced:
        assert file.stat().st_mode & 0o777 == 0o600


@compiles
def test_permissions_of_the_cache(place: Place) -> None:
    """With the umask 002, the folders around the library may be written by the user's own group."""
    before = os.umask(0o002)
    try:
        place.load()
    finally:
        os.umask(before)
    assert place.cache.parent.stat().st_mode & 0o777 == 0o775
    assert place.cache.stat().st_mode & 0o777 == 0o700
    assert place.file().stat().st_mode & 0o777 == 0o600
    in_new_process(place)
    assert count_of(place.compiler) == 1


# --- Compilers that do not serve ----------------------------------------------------------------------------


@compiles
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo broken", "file too short"),
        ("head -c 500 /dev/zero", "invalid ELF header"),
    ],
)
def test_a_compiler_that_makes_no_library(script: str, reason: str, place: Place) -> None:
    # It links with -shared -o NAME.
    program(place.compiler, f'case "$1" in -shared) {script} > "$3" ;; *) echo 1.0 ;; esac')
    message = f"the compiler {place.compiler} makes a library that cannot be loaded: {reason}"
    assert library.why_not_cpp() == f"needs a C++ compiler, and {message}"
    assert listing(place.cache) == []


@compiles
def test_a_library_with_an_undefined_symbol(place: Place) -> None:
    """So it is with OpenMP's functions if this PyTorch was built without OpenMP."""
    write_sources(place.source, answer='extern "C" void GOMP_no(); extern "C" void f() { GOMP_no(); }')
    with pytest.raises(CompilerError, match=r"cannot be loaded: undefined symbol: GOMP_no$"):
        place.load()
    assert listing(place.cache) == []


# --- OpenMP and forks ---------------------------------------------------------------------------------------


def test_a_fork_during_a_build_can_build_itself(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread holds the lock while another one forks."""
    monkeypatch.setattr(library, "why_not_here", lambda: "planted")

    def ask() -> None:
        assert library.why_not_cpp() == "planted"

    with library._lock:
        process = forked(ask)
        assert status_of(process) == 0


PROGRAM = """
import ctypes, os, signal, sys
from pathlib import Path

import torch

from fastcyclegan.kernels.cpu import library, processors

torch.set_num_threads(2)
assert processors.processor() == "avx2", processors.processor()
library.SOURCE = Path(sys.argv[1])


def check_in_child(threads):
    child = os.fork()
    if not child:
        signal.alarm(100)
        assert library.threads() == threads, library.threads()
        assert library.library().threads_used(library.threads()) == threads
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


check_in_child(2)  # the library is first used in the child
assert library.threads() == 2
assert library.why_not_cpp() == "", library.why_not_cpp()
assert library.library().vector_bits() == 256
assert library.library().threads_used(library.threads()) == 2
check_in_child(1)
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line}
print(*runtimes, sep="\\n")
"""
THREADS_USED = f"""{SHOWN} int threads_used(int threads);"""
THREADS_USED += """
extern "C" void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
extern "C" void GOMP_barrier();
int threads_used(int threads) {
    int used = 0;
    auto body = [](void *count) {
        __atomic_fetch_add((int *)count, 1, __ATOMIC_RELAXED);
        GOMP_barrier();
    };
    GOMP_parallel(body, &used, threads, 0);
    return used;
}
"""


@compiles
def test_one_openmp_runtime_and_one_thread_after_a_fork(place: Place) -> None:
    """The kernels run on PyTorch's own OpenMP threads; in a fork of a process that used them, on one thread.

    In a program of its own: one with a single thread, so that a fork before the first use can use two.
    """
    write_sources(place.source, answer=THREADS_USED)
    environment = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": "avx2",
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(place.cache),
    }
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(place.source)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (runtime,) = process.stdout.splitlines()
    assert Path(runtime).is_relative_to(Path(torch.__file__).parent)
