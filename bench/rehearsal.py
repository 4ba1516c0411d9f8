"""Rehearse a stage of the GPU suite without a GPU.

The conditions are those of a GPU machine: a copy of the tracked files, and a Python that has only that
machine's packages. The result files are marked: their names start with "rehearsal-", and they contain
"rehearsal, no GPU".
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from PIL import Image, ImageDraw, PngImagePlugin

from bench.machine import ROOT

# The packages that the GPU machine has. It has neither tyro nor DALI, and fastcyclegan is not installed.
PACKAGES = (
    "torch", "triton", "numpy", "pillow", "rich", "matplotlib", "tensorboard", "safetensors",
    "huggingface_hub",
    "pytest", "pytest-benchmark", "pytest-timeout", "pytest-xdist",
)  # fmt: skip
MARK, PREFIX = "rehearsal, no GPU", "rehearsal-"
# Seconds to wait after an interrupt: for the rehearsal to react by itself, and then to end after SIGTERM.
REACTION, ENDING = 5.0, 20.0


class CannotRehearse(Exception):  # noqa: N818 - a reason to report, not a fault
    """Raised if no rehearsal is possible; the message gives the reason."""


def _package_name(requirement: str) -> str | None:
    """Return the name of the required package, or None if it is not needed here.

    It is not needed here if it is only for an extra or for another system.
    """
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    if parsed.marker is None or parsed.marker.evaluate({"extra": ""}):
        return parsed.name
    return None


def needed(packages: Sequence[str]) -> Iterator[Distribution]:
    """Yield the installed distributions of ``packages`` and of everything they require.

    Raises CannotRehearse if one of ``packages`` is not installed.
    """
    todo, seen = list(packages), set[str]()
    while todo:
        name = todo.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen:
            continue
        seen.add(key)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            # A requirement that is missing here is not needed in the rehearsal either.
            if name in packages:
                raise CannotRehearse(
                    f"a rehearsal needs the packages of the GPU machine, and {name} is not installed: pip"
                    " install -e '.[test]'"
                ) from None
            continue
        yield installed
        if installed.requires is not None:
            for requirement in installed.requires:
                other = _package_name(requirement)
                if other is not None:
                    todo.append(other)


def bare_python(folder: Path, packages: Sequence[str] = PACKAGES) -> Path:
    """Create a virtual environment in ``folder`` that has only ``packages`` and their requirements.

    The packages are links to the installed ones. Returns the path of the environment's Python.
    """
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in needed(packages):
        for top in _top_folders(package):
            target = site / top
            if not target.exists():
                target.symlink_to(Path(str(package.locate_file(top))).resolve())
    return folder / "bin" / "python"


def _top_folders(package: Distribution) -> set[str]:
    """Return the top-level files and folders of ``package`` in site-packages."""
    if package.files is None:
        return set()
    return {file.parts[0] for file in package.files} - {"..", "__pycache__"}


def _git_files(*options: str) -> list[str]:
    """Return the files that git lists, or an empty list without git or outside a checkout."""
    try:
        process = subprocess.run(
            ["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return []
    if process.returncode != 0:
        return []
    return [name for name in process.stdout.split("\0") if name]


def tracked_copy(folder: Path) -> None:
    """Copy the files that git tracks, as they are in the working tree, into ``folder``.

    Raises CannotRehearse outside a checkout.
    """
    names = _git_files()
    if not names:
        raise CannotRehearse(f"{ROOT} is not a git checkout, so the files to copy cannot be determined")
    if untracked := _git_files("--others", "--exclude-standard"):
        print(
            f"left out of the rehearsal, because git does not track them: {', '.join(untracked[:8])}",
            flush=True,
        )
    for name in names:
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment variables for a rehearsal.

    They hide the GPU, leave out the Python settings of this process, and put caches into ``folder``.
    """
    excluded = ("PYTHON", "PYTEST_", "TRITON_", "TORCH")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(excluded)}
    return {
        **inherited,
        "CUDA_VISIBLE_DEVICES": "",
        # With few cores and tiny work, several threads would only wait for each other.
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }


# --- Marks --------------------------------------------------------------------------------------------------


def mark(file: Path) -> Path:
    """Mark ``file`` as coming from a rehearsal, in its content and in its name, and return its new path.

    Files in other formats are only renamed.
    """
    kind = file.suffix
    if kind == ".gz":
        kind = "".join(file.suffixes[-2:])
    if kind in (".md", ".log", ".txt"):
        file.write_text(f"{MARK}\n\n{file.read_text(errors='replace')}")
    elif kind == ".json":
        file.write_text(json.dumps({"rehearsal": MARK, **json.loads(file.read_text())}, indent=1) + "\n")
    elif kind == ".json.gz":
        with gzip.open(file, "rt") as packed:
            content = {"rehearsal": MARK, **json.load(packed)}
        with gzip.open(file, "wt") as packed:
            json.dump(content, packed)
    elif kind == ".png":
        _mark_image(file)
    return file.rename(file.with_name(PREFIX + file.name))


def _mark_image(file: Path) -> None:
    with Image.open(file) as image:
        sheet = Image.new("RGB", (image.width, image.height + 20), "yellow")
        sheet.paste(image.convert("RGB"), (0, 20))
    ImageDraw.Draw(sheet).text((4, 4), MARK, fill="black")
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", MARK)
    sheet.save(file, pnginfo=about)


def check_results(results: Path) -> None:
    """Raise CannotRehearse if the files of a rehearsal cannot be written to the folder ``results``.

    The folder must not be the one for GPU results, nor contain files that are not from a rehearsal.
    """
    gpu_results = ROOT / "bench" / "results"
    if results.resolve() == gpu_results or gpu_results in results.resolve().parents:
        raise CannotRehearse(
            "bench/results is reserved for GPU results; choose another folder with --results"
        )
    if results.exists() and not results.is_dir():
        raise CannotRehearse(f"--results {results} is a file, not a folder")
    try:
        results.mkdir(parents=True, exist_ok=True)
        (results / PREFIX).touch()
        (results / PREFIX).unlink()
    except OSError as error:
        raise CannotRehearse(f"--results {results}: cannot write to this folder: {error.strerror}") from None
    others = [file.name for file in results.iterdir() if not file.name.startswith(PREFIX)]
    if others:
        raise CannotRehearse(
            f"--results {results}: the folder contains files that are not from a rehearsal, such as"
            f" {others[0]}; choose an empty folder"
        )


def rehearse(arguments: Sequence[str], results: Path) -> int:
    """Run the suite with ``arguments`` as on a GPU machine, and return its exit code.

    It runs in a copy of the checkout and a bare environment. Its files are marked and moved to ``results``.
    Raises CannotRehearse if no rehearsal is possible.
    """
    check_results(results)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastcyclegan-rehearsal-") as name:
        folder = Path(name)
        copy, unmarked = folder / "copy", folder / "results"
        for each in (copy, unmarked, folder / "tmp"):
            each.mkdir()
        tracked_copy(copy)
        python = bare_python(folder / "venv")
        prepared = time.monotonic() - started
        print(f"{MARK}: copied the files and created a bare Python in {prepared:.0f} s", flush=True)
        script = str(copy / "scripts" / "gpu_suite.py")
        suite = [script, "--in-rehearsal", *arguments, "--results", str(unmarked)]
        status = _run([str(python), *suite], folder)
        for file in sorted(path for path in unmarked.rglob("*") if path.is_file()):
            shutil.move(mark(file), results / (PREFIX + file.name))
    print(f"{MARK}: finished in {time.monotonic() - started:.0f} s; files in {results}")
    return status


def _run(command: Sequence[str], folder: Path) -> int:
    """Run ``command`` until it ends or this process is interrupted, and return its exit status."""
    with subprocess.Popen(command, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # Ctrl-C also ends the parts of the suite; otherwise the SIGTERM below does. The results so far
            # have already been written.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REACTION)
            process.terminate()
            return process.wait(ENDING)
        finally:
            process.kill()
