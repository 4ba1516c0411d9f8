"""A stage of the GPU suite without a GPU, as a GPU machine would have it: a copy of the tracked files, a
Python with its packages alone.

What runs there is marked: every file is called rehearsal-... and says "rehearsal, no GPU" inside.
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

# What the machine has; what it lacks of ours is tyro, DALI, and the project itself.
PACKAGES = (
    "torch", "triton", "numpy", "pillow", "rich", "matplotlib", "tensorboard", "safetensors",
    "huggingface_hub",
    "pytest", "pytest-benchmark", "pytest-timeout", "pytest-xdist",
)  # fmt: skip
MARK, PREFIX = "rehearsal, no GPU", "rehearsal-"
# Seconds for a rehearsal that is ended from outside: to have heard of it, and to end.
HEARD, ENDING = 5.0, 20.0


class CannotRehearse(Exception):  # noqa: N818 - a reason, for whoever asked
    """Why there is no rehearsal here."""


def _name(requirement: str) -> str | None:
    """Return the package that a requirement names, None where it is wanted by an extra or not on this
    system."""
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    if parsed.marker is None or parsed.marker.evaluate({"extra": ""}):
        return parsed.name
    return None


def needed(packages: Sequence[str]) -> Iterator[Distribution]:
    """Yield ``packages`` as they are installed here, and all that they need. Raises CannotRehearse where one
    of ``packages`` is missing.
    """
    todo, seen = list(packages), set[str]()
    while todo:
        name = todo.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            # What others need and do without here, they do without there.
            if name in packages:
                raise CannotRehearse(
                    f"it needs what the GPU machine has, and {name} is not installed: pip install -e"
                    " '.[test]'"
                ) from None
            continue
        yield found
        if found.requires is not None:
            for requirement in found.requires:
                other = _name(requirement)
                if other is not None:
                    todo.append(other)


def bare_python(folder: Path, packages: Sequence[str] = PACKAGES) -> Path:
    """Make a virtual environment in ``folder`` that has ``packages`` and what they need, by links to those
    here; return its Python.
    """
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for found in needed(packages):
        for top in _top_folders(found):
            target = site / top
            if not target.exists():
                target.symlink_to(Path(str(found.locate_file(top))).resolve())
    return folder / "bin" / "python"


def _top_folders(package: Distribution) -> set[str]:
    """Return what ``package`` has at the top of its site-packages."""
    if package.files is None:
        return set()
    return {file.parts[0] for file in package.files} - {"..", "__pycache__"}


def _listed(*options: str) -> list[str]:
    """Return the files that git lists, none where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return []
    if done.returncode != 0:
        return []
    return [name for name in done.stdout.split("\0") if name]


def tracked_copy(folder: Path) -> None:
    """Copy what git tracks, as it is in the working tree, into ``folder``. Raises CannotRehearse outside a
    checkout.
    """
    names = _listed()
    if not names:
        raise CannotRehearse(f"{ROOT} is no git checkout, so there is nothing to tell which files travel")
    if untracked := _listed("--others", "--exclude-standard"):
        print(
            f"not in the rehearsal, because git does not track them: {', '.join(untracked[:8])}", flush=True
        )
    for name in names:
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def environment(folder: Path) -> dict[str, str]:
    """Return an environment with nothing of this one's Python, no GPU, and caches of its own."""
    others = ("PYTHON", "PYTEST_", "TRITON_", "TORCH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return {
        **kept,
        "CUDA_VISIBLE_DEVICES": "",
        # Few processors and tiny work: threads would wait for each other.
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }


# --- Marks --------------------------------------------------------------------------------------------------


def mark(file: Path) -> Path:
    """Write into ``file`` that it is of a rehearsal, call it so, and return where it is now. What holds no
    text is called so alone.
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
    """Raise CannotRehearse for a folder that has, or is meant for, figures of a GPU."""
    kept = ROOT / "bench" / "results"
    if results.resolve() == kept or kept in results.resolve().parents:
        raise CannotRehearse("bench/results is for what a GPU gave: name another folder with --results")
    if results.exists() and not results.is_dir():
        raise CannotRehearse(f"--results {results} is a file")
    try:
        results.mkdir(parents=True, exist_ok=True)
        (results / PREFIX).touch()
        (results / PREFIX).unlink()
    except OSError as error:
        raise CannotRehearse(f"--results {results}: cannot write there: {error.strerror}") from None
    others = [file.name for file in results.iterdir() if not file.name.startswith(PREFIX)]
    if others:
        raise CannotRehearse(
            f"--results {results} holds what is of no rehearsal ({others[0]}): name an empty folder"
        )


def rehearse(arguments: Sequence[str], results: Path) -> int:
    """Run the suite with ``arguments`` in a copy and a bare environment; ``results`` gets its files, marked.
    Raises CannotRehearse.
    """
    check_results(results)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastcyclegan-rehearsal-") as name:
        folder = Path(name)
        copy, own = folder / "copy", folder / "results"
        for each in (copy, own, folder / "tmp"):
            each.mkdir()
        tracked_copy(copy)
        python = bare_python(folder / "venv")
        print(f"{MARK}: files copied and a bare Python made in {time.monotonic() - began:.0f} s", flush=True)
        suite = [str(copy / "scripts" / "gpu_suite.py"), "--in-rehearsal", *arguments, "--results", str(own)]
        status = _run([str(python), *suite], folder)
        for file in sorted(path for path in own.rglob("*") if path.is_file()):
            shutil.move(mark(file), results / (PREFIX + file.name))
    print(f"{MARK}: {time.monotonic() - began:.0f} s in all; files in {results}")
    return status


def _run(command: Sequence[str], folder: Path) -> int:
    """Run ``command`` until it ends, or until this process is told to end. Returns its exit status."""
    with subprocess.Popen(command, cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # It ends its parts, by the same Ctrl-C or else by a signal of its own; what it knew is written.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(HEARD)
            process.terminate()
            return process.wait(ENDING)
        finally:
            process.kill()
