"""Tests of the libraries that a wheel carries: how they are built, and which are not loaded."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastcyclegan.kernels.cpu import library, processors, wheel_library
from fastcyclegan.kernels.cpu._compiler import CompilerError, library_suffix, sources_of
from tests.kernels.cpu.compilers import REAL, counting, listing, program, write_sources

pytestmark = pytest.mark.skipif(
    not processors.processor() or REAL is None, reason="needs a C++ compiler, and a processor with AVX2"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_sources(tmp_path / "source")


@pytest.fixture
def built(source: Path, tmp_path: Path) -> Path:
    """A folder of libraries, built as for a wheel."""
    wheel_library.build(source, tmp_path / "built")
    return tmp_path / "built"


def own_file(built: Path) -> Path:
    """Return the library of this processor."""
    name = {"amx": "avx512"}.get(processors.processor(), processors.processor())
    return built / f"{name}{library_suffix()}"


def test_a_library_for_each_class_of_processors(source: Path, tmp_path: Path) -> None:
    files = wheel_library.build(source, tmp_path / "a" / "built")
    assert [file.name for file in files] == ["avx2.so", "avx512.so"]
    assert listing(tmp_path / "a" / "built") == ["avx2.so", "avx512.so", "built.json"]
    # The file is named by its folder, so both classes can be loaded in this process if it can run them.
    bits = {"avx2": 256, "avx512": 512, "amx": 512}
    classes = ["avx2"] if processors.processor() == "avx2" else list(bits)
    for kind in classes:
        loaded: Any = wheel_library.load(kind, source, tmp_path / "a" / "built").library
        assert loaded.answer() == 42
        assert loaded.vector_bits() == bits[kind]


@pytest.mark.parametrize(("machine", "names"), [("aarch64", ["neon"]), ("AMD64", ["avx2", "avx512"])])
def test_the_classes_of_other_machines(
    machine: str, names: list[str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    # This stands for a compiler of that machine.
    compiler = program(
        tmp_path / "any", 'case "$1" in -shared) echo library > "$3" ;; *) echo "1.0 any" ;; esac'
    )
    monkeypatch.setenv("CXX", str(compiler))
    files = wheel_library.build(source, tmp_path / "built")
    assert [file.stem for file in files] == names
    facts = json.loads((tmp_path / "built" / "built.json").read_text())
    checksum = hashlib.sha256(b"library\n").hexdigest()
    assert facts == {
        "compiler": "1.0 any",
        "sources": sources_of(source),
        "libraries": dict.fromkeys(names, checksum),
    }


def test_nothing_is_built_for_an_unknown_machine(
    source: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert wheel_library.build(source, built) == []
    assert not built.exists()


def test_a_failing_compiler_leaves_no_folder(
    source: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries of an earlier build would not belong to these sources."""
    monkeypatch.setenv("CXX", str(program(tmp_path / "broken", "echo 'a.cpp:1: error: no'; exit 1")))
    with pytest.raises(CompilerError, match=r"error: no$"):
        wheel_library.build(source, built)
    assert not built.exists()


def test_a_checkout_has_no_libraries(source: Path, tmp_path: Path) -> None:
    assert wheel_library.load(
        processors.processor(), source, tmp_path / "built"
    ) == wheel_library.WheelLibrary(None)
    assert not wheel_library.BUILT.exists()


def change_sources(built: Path) -> None:
    (built.parent / "source" / "answer.h").write_text("#define ANSWER 43\n")


def change_facts(**changes: object) -> Callable[[Path], None]:
    def change(built: Path) -> None:
        facts = json.loads((built / "built.json").read_text())
        (built / "built.json").write_text(json.dumps({**facts, **changes}))

    return change


def without_compiler(built: Path) -> str:
    facts = json.loads((built / "built.json").read_text())
    return json.dumps({name: facts[name] for name in ("sources", "libraries")})


def make_pipe(built: Path) -> None:
    own_file(built).unlink()
    os.mkfifo(own_file(built))


def make_folder(built: Path) -> None:
    (built / "built.json").unlink()
    (built / "built.json").mkdir()


def replace_library(built: Path) -> None:
    """Replace it by a file that is none, with the right checksum."""
    content = b"no library" * 100
    own_file(built).write_bytes(content)
    change_facts(libraries={own_file(built).stem: hashlib.sha256(content).hexdigest()})(built)


# What is done to the libraries, and what is then said of them.
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "other sources": (change_sources, "{file} was built from other sources"),
    "shortened": (lambda built: os.truncate(own_file(built), 5000), "{file} is damaged"),
    "missing": (lambda built: own_file(built).unlink(), "{file} cannot be read: No such file or directory"),
    "a pipe": (make_pipe, "{file} is no file"),
    "a folder of facts": (make_folder, "{facts} cannot be read: Is a directory"),
    "nested facts": (lambda built: (built / "built.json").write_text("[" * 10**5), "{facts} is damaged"),
    "no compiler": (
        lambda built: (built / "built.json").write_text(without_compiler(built)),
        "{facts} is damaged",
    ),
    "no library": (replace_library, "{file} cannot be loaded: file too short"),
    "empty facts": (lambda built: (built / "built.json").write_text(""), "{facts} is damaged"),
    "facts of another kind": (lambda built: (built / "built.json").write_text("3"), "{facts} is damaged"),
    "no sources": (lambda built: (built / "built.json").write_text("{}"), "{facts} is damaged"),
    "binary facts": (lambda built: (built / "built.json").write_bytes(b"\xff"), "{facts} is damaged"),
    "checksums of another kind": (change_facts(libraries=3), "{facts} is damaged"),
    "another class": (change_facts(libraries={"neon": "0"}), ""),
}


@pytest.mark.parametrize(("fault", "problem"), FAULTS.values(), ids=FAULTS.keys())
def test_libraries_that_are_not_loaded(
    fault: Callable[[Path], object], problem: str, source: Path, built: Path
) -> None:
    fault(built)
    found = wheel_library.load(processors.processor(), source, built)
    assert found.library is None
    expected = problem.format(file=own_file(built), facts=built / "built.json")
    assert found.problem.replace("invalid ELF header", "file too short") == expected


# --- In a process -------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(source: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this process use the libraries in ``built``, and a compiler that counts how often it compiles."""
    load = wheel_library.load
    monkeypatch.setattr(library, "_answer", None)
    monkeypatch.setattr(library, "SOURCE", source)
    monkeypatch.setattr(wheel_library, "load", lambda kind, files: load(kind, files, built))
    monkeypatch.setattr(library, "cache_folder", lambda name: tmp_path / "cache" / name)
    file = counting(tmp_path / "compiler")
    monkeypatch.setenv("CXX", str(file))
    return file


@pytest.mark.parametrize("what", ["the folder", "the facts", "the library", "the sources"])
def test_files_that_cannot_be_read(
    what: str, source: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their permissions are those of another user."""
    path = {
        "the folder": built,
        "the facts": built / "built.json",
        "the library": own_file(built),
        "the sources": source / "answer.cpp",
    }[what]
    read = Path.read_bytes

    def refuse(file: Path) -> bytes:
        if file == path or path in file.parents:
            raise PermissionError(13, "Permission denied", str(file))
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "read_text", lambda file: refuse(file).decode())
    named = built / "built.json" if what == "the folder" else path
    found = wheel_library.load(processors.processor(), source, built)
    assert (found.library, found.problem) == (None, f"{named} cannot be read: Permission denied")


def test_no_compiler_is_needed(built: Path, compiler: Path) -> None:
    compiler.unlink()
    assert library.why_not_cpp() == ""
    loaded: Any = library.library()
    assert loaded.answer() == 42
    assert library.answer().origin.startswith(f"{own_file(built)}, built by ")
    assert not (built.parent / "cache").exists()


def test_a_library_that_cannot_be_used_is_compiled(built: Path, compiler: Path) -> None:
    os.truncate(own_file(built), 5000)
    assert library.why_not_cpp() == ""
    assert library.answer().origin.endswith(".so, compiled on this machine")
    assert compiler.with_name("compiler.log").read_text() == "compiled\n"


def test_both_reasons_are_given(built: Path, compiler: Path) -> None:
    compiler.unlink()
    os.truncate(own_file(built), 5000)
    assert library.why_not_cpp() == (
        f"needs a C++ compiler, and CXX='{compiler}' was not found; correct or unset CXX"
        f", and {own_file(built)} is damaged, so reinstall fastcyclegan"
    )
