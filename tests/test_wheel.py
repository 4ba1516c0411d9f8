"""Tests of the wheel and the source archive as users get them: outside the checkout, without a compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from fastcyclegan.kernels.cpu import processors

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastcyclegan"
NO_COMPILER = "/nowhere/c++"
PIP = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]

needs_library = pytest.mark.skipif(
    not processors.processor() or shutil.which("c++") is None,
    reason="needs a C++ compiler, and a processor with AVX2",
)


def copy_of_tree(folder: Path) -> Path:
    """Copy the files needed for a build, so that it leaves nothing in the checkout."""
    tree, no_caches = folder / "tree", shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tree / "fastcyclegan", symlinks=True, ignore=no_caches)
    shutil.copytree(ROOT / "kernels", tree / "kernels", ignore=no_caches)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree / name)
    return tree


def cpp_files(tree: Path) -> set[str]:
    """Return the names of all files in kernels/cpu that are no modules."""
    folder = tree / "kernels" / "cpu"
    files = [file for file in folder.rglob("*.*") if file.suffix not in (".py", ".pyc")]
    return {file.relative_to(folder).as_posix() for file in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built with the machine's compiler."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*PIP, "-q", "-w", str(folder), str(copy_of_tree(folder))], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive."""
    folder = tmp_path_factory.mktemp("archive")
    code = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=copy_of_tree(folder), capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def site_of(wheel: Path, folder: Path) -> Path:
    """Unpack the wheel into ``folder``, as an installation does."""
    with zipfile.ZipFile(wheel) as contents:
        contents.extractall(folder)
    return folder


IMPORTS = """
import importlib, json, sys
print(json.dumps([importlib.import_module(name).__file__ for name in sys.argv[1:]]))
"""


def test_the_wheel_contains_the_package_and_works_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = site_of(wheel, tmp_path / "site")
    names = {file.relative_to(site).as_posix() for file in site.rglob("*") if file.is_file()}
    # In the checkout, the kernels are reached through a symbolic link.
    files = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    files |= {
        f"fastcyclegan/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == files
    others = {f"kernels/cpu/{name}" for name in cpp_files(ROOT)} | {"kernels/README.md", "py.typed"}
    assert {f"fastcyclegan/{name}" for name in others} < names
    assert not any(name.startswith(("kernels/", "setup")) for name in names)
    modules = sorted(name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files)
    process = subprocess.run(
        [sys.executable, "-c", IMPORTS, *modules], cwd=site, check=True, capture_output=True, text=True
    )
    places = json.loads(process.stdout)
    assert len(places) == len(modules) > 100
    assert all(Path(place).is_relative_to(site) for place in places)


def test_the_source_archive_contains_the_cpp_files(archive: Path) -> None:
    with tarfile.open(archive) as contents:
        names = {name.partition("/")[2] for name in contents.getnames()}
    assert {f"kernels/cpu/{name}" for name in cpp_files(ROOT)} | {"setup.py"} < names


# --- The C++ kernels ----------------------------------------------------------------------------------------

# Prints where the kernels came from, and the bits of a result and its gradients.
TRANSLATE = """
import hashlib, sys, warnings
import torch
import fastcyclegan
before = set(sys.modules)
from fastcyclegan.kernels.cpu import library
assert library._answer is None
torch.manual_seed(0)
torch.set_num_threads(1)
net = fastcyclegan.Generator(ngf=8, n_blocks=1, impl=sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        y = net(torch.rand(1, 3, 24, 20))
y.square().mean().backward()
bits = hashlib.sha256(y.detach().contiguous().numpy().tobytes())
for p in net.parameters():
    bits.update(p.grad.contiguous().numpy().tobytes())
texts = [w.message for w in caught]
print(fastcyclegan.__file__, library.answer().origin, bits.hexdigest(), *texts, sep="\\n")
"""


def start(site: Path, impl: str = "cpp", **environment: str) -> subprocess.Popen[str]:
    """Start TRANSLATE with the package in ``site``, with no programs and no folder that can be written."""
    keep = {name: value for name, value in os.environ.items() if name.startswith(("LD_", "OMP_"))}
    return subprocess.Popen(
        [sys.executable, "-c", TRANSLATE, impl],
        # /proc cannot be written even by root.
        env={**keep, "PATH": "/nowhere", "HOME": "/proc/self", "PYTHONPATH": str(site), **environment},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output.splitlines()


@needs_library
@pytest.mark.parametrize("capability", ["", "avx2"])
def test_the_wheel_needs_no_compiler(capability: str, wheel: Path, tmp_path: Path) -> None:
    """From a folder with a space and other letters, in two processes at once, each with a read-only home.

    The bits are those of the kernels that the checkout compiles.
    """
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    limits = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": capability} if capability else {}
    kind = "avx512" if processors.processor() != "avx2" and not capability else "avx2"
    site = site_of(wheel, tmp_path / "zwei Wörter, 図")
    both = [start(site, **limits) for _ in range(2)]
    # With the cache of all tests, which can have them already.
    cache = os.environ["XDG_CACHE_HOME"]
    compiled = start(ROOT, **limits, PATH=os.environ["PATH"], XDG_CACHE_HOME=cache)
    (*_, bits) = lines_of(compiled)
    for process in both:
        file, origin, ours = lines_of(process)
        assert Path(file).is_relative_to(site)
        assert origin.startswith(f"{site}/fastcyclegan/kernels/cpu/built/{kind}.so, built by ")
        assert ours == bits


def build(archive: Path, folder: Path, **environment: str) -> tuple[Path, str]:
    """Build a wheel from the source archive, and return it and what pip prints."""
    process = subprocess.run(
        [*PIP, "-v", "-w", str(folder), str(archive)],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    (wheel,) = folder.glob("*.whl")
    return wheel, process.stdout


@needs_library
def test_the_source_archive_builds_the_libraries(archive: Path, tmp_path: Path) -> None:
    (wheel, output) = build(archive, tmp_path)
    assert output.count("built/avx2.so (") == 1
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")


def test_the_source_archive_installs_without_a_compiler(archive: Path, tmp_path: Path) -> None:
    (wheel, output) = build(archive, tmp_path, CXX=NO_COMPILER)
    assert output.count("without the C++ kernels") == 1
    assert f"needs a C++ compiler, and CXX='{NO_COMPILER}' was not found" in output
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.skipif(not processors.processor(), reason="needs a processor with AVX2")
def test_without_a_compiler_pytorch_computes_everything(archive: Path, tmp_path: Path) -> None:
    """This is said once."""
    (wheel, _) = build(archive, tmp_path, CXX=NO_COMPILER)
    site = site_of(wheel, tmp_path / "site")
    file, origin, bits, warning = lines_of(start(site, "auto"))
    assert Path(file).is_relative_to(site)
    assert not origin
    assert warning == (
        "the C++ kernels cannot be used: impl='cpp' needs a C++ compiler, and none was found (c++, g++,"
        " clang++; or set CXX); PyTorch computes the layers that need it"
    )
    assert bits == lines_of(start(site, "reference"))[2]
