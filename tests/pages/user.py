"""A reader's folder, and what happens when commands and examples run in it.

The folder holds a copy of the files that git tracks, and what the pages assume that a reader has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fastcyclegan import Generator, PixelDiscriminator
from fastcyclegan.checkpoints.run_files import save_weights
from tests.conftest import write_images
from tests.pages.forked_python import MAY_WRITE, WRITTEN_ELSEWHERE
from tests.pages.page import ROOT, Code, PageError, tracked
from tests.pages.tables import reduced

# Caches of compilers that all tests share.
SHARED = ("TORCHINDUCTOR_CACHE_DIR",)
SECONDS = 240.0


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str
    written_elsewhere: str


@dataclass(frozen=True)
class User:
    """A user in ``folder``, with a home of their own, whose commands are looked up in ``bin`` first."""

    folder: Path
    bin: Path

    @property
    def home(self) -> Path:
        return self.folder.with_name("home")

    @property
    def cache(self) -> Path:
        """The folder of caches in the home. Its C++ kernels may be a link to those of other tests."""
        return self.home / ".cache"

    def run(self, command: str, seconds: float = SECONDS) -> Outcome:
        """Run ``command`` in a shell, which fails if a part of a pipe fails."""
        elsewhere = self.folder.with_name("written_elsewhere")
        elsewhere.write_text("")
        process = subprocess.Popen(
            ["bash", "-eo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self._environment() | {WRITTEN_ELSEWHERE: str(elsewhere)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            output = f"{process.communicate()[0]}\nnot finished after {seconds:.0f} seconds"
        return Outcome(process.returncode, output, elsewhere.read_text())

    def check(self, where: str, command: str, expected: int = 0) -> str:
        """Run ``command`` at its smaller size, and return its output.

        Raises PageError if it ends with another exit code, prints a traceback, or writes outside the folder.
        """
        outcome = self.run(reduced(command))
        problems = []
        if outcome.code != expected:
            problems.append(f"exit code {outcome.code}, not {expected}")
        if "Traceback (most recent call last)" in outcome.output:
            problems.append("a traceback")
        if outcome.written_elsewhere:
            problems.append(f"files outside its folder: {outcome.written_elsewhere.strip()}")
        if problems:
            found = "; ".join(problems)
            raise PageError(
                f"{where}: {found}\nwas run as: {reduced(command)}\nand printed:\n{outcome.output}"
            )
        return outcome.output

    def _environment(self) -> dict[str, str]:
        home, kernels = self.home, self.cache / "fastcyclegan" / "cpu"
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        shared = {name: os.environ[name] for name in SHARED if name in os.environ}
        may_write = (self.folder, home, kernels.resolve(), Path("/dev"), Path("/proc"), *shared.values())
        return clean_environment() | {
            "PATH": os.pathsep.join(map(str, (self.bin, Path(sys.executable).parent, os.environ["PATH"]))),
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            # Triton has looked up the home of the server.
            "TRITON_HOME": str(home),
            "RESULTS": "results",
            # A command that is missing in the tables downloads nothing.
            "PIP_NO_INDEX": "1",
            "HF_HUB_OFFLINE": "1",
            MAY_WRITE: os.pathsep.join(map(str, may_write)),
        }


def clean_environment() -> dict[str, str]:
    """Return the environment without the settings of this test run."""
    excluded = ("PYTHON", "PYTEST_", "TRITON_", "XDG_", "COVERAGE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(excluded)} | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }


def make_folder(folder: Path) -> None:
    """Fill ``folder`` with the tracked files of the project, and with a reader's files."""
    for name in tracked():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    for seed, name in enumerate(("photos", "paintings", "holiday")):
        write_images(folder / name, 4, size=(30, 30), seed=seed)
    for dataset in ("maps", "datasets/maps"):
        for seed, part in enumerate(("trainA", "trainB", "testA", "testB")):
            write_images(folder / dataset / part, 2, size=(40, 40), seed=seed)
    with zipfile.ZipFile(folder / "horse2zebra.zip", "w") as archive:
        for file in sorted((folder / "maps").rglob("*.png")):
            archive.write(file, Path("horse2zebra", *file.parts[-2:]))
    for name in ("holiday.jpg", "painting.jpg"):
        (file,) = write_images(folder / "single", 1, suffix=".jpg")
        file.rename(folder / name)
    shutil.copytree(ROOT / "tests" / "official" / "checkout", folder / "checkout")
    _write_weights(folder)
    (folder / "results").mkdir()


def _write_weights(folder: Path) -> None:
    generator = Generator(ngf=2, n_blocks=1).state_dict()
    save_weights(folder / "latest_net_G_A.pth", generator)
    run = folder / "runs" / "maps_pretrained"
    run.mkdir(parents=True)
    for name in "AB":
        save_weights(run / f"latest_net_G_{name}.pth", Generator(ngf=2, n_blocks=0).state_dict())
        save_weights(run / f"latest_net_D_{name}.pth", PixelDiscriminator(ndf=2).state_dict())


def examples_program(examples: list[Code], expressions: list[str]) -> str:
    """Return a program that runs ``examples`` in order, and writes the values of ``expressions``.

    The examples share one namespace, except those of README.md, each of which a reader can copy alone. The
    values are written to results.json. A traceback shows the page and its line.
    """
    blocks = [(code.page, code.line, reduced(code.text)) for code in examples]
    return f"""
import json, linecache, pathlib
names = {{}}
for page, line, code in {blocks!r}:
    text = "\\n" * (line - 1) + code
    linecache.cache[page] = (len(text), None, text.splitlines(keepends=True), page)
    own = {{"__name__": "__main__"}} if page == "README.md" else names
    exec(compile(text, page, "exec"), own)
    names |= own
names["pathlib"] = pathlib
results = {{expression: eval(expression, names) for expression in {expressions!r}}}
pathlib.Path("results.json").write_text(json.dumps(results))
"""
