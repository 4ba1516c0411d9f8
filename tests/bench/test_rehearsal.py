"""The rehearsal of the GPU suite on a machine without a GPU.

It uses a Python with only the packages of the GPU machine, in which the scripts run, and marks its results.
"""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from bench import gpu_suite, rehearsal
from bench.rehearsal import MARK, CannotRehearse, bare_python, check_results, environment, mark, tracked_copy

ROOT = Path(__file__).parents[2]


IMPORTABLE = """
from importlib.util import find_spec

def importable(name):
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False

print([importable(name) for name in {!r}])
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_python(tmp_path_factory.mktemp("bare") / "venv")


def run(python: Path, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def test_bare_python_has_only_the_packages_of_the_gpu_machine(bare: Path, tmp_path: Path) -> None:
    present = (
        "torch",
        "triton",
        "numpy",
        "PIL",
        "rich",
        "matplotlib",
        "safetensors",
        "pytest",
        "pytest_benchmark",
        "xdist",
    )
    absent = ("fastcyclegan", "tyro", "nvidia.dali", "ruff", "mypy")
    result = run(
        bare,
        "-c",
        IMPORTABLE.format((*present, *absent)),
        folder=tmp_path,
    )
    assert result.stdout.strip() == str([True] * len(present) + [False] * len(absent)), result.stderr


@pytest.mark.parametrize(
    "name", ["train", "translate", "inspect_checkpoint", "download_dataset", "check_dataset"]
)
def test_scripts_report_missing_tyro_in_one_line(bare: Path, tmp_path: Path, name: str) -> None:
    """A script that is started without tyro, from another folder, reports this without a traceback."""
    process = run(bare, str(ROOT / "scripts" / f"{name}.py"), "--help", folder=tmp_path)
    assert process.returncode == 2
    assert process.stderr == "error: this command needs the package tyro: python -m pip install tyro\n"


@pytest.mark.parametrize(
    "name", ["compile_kernels", "count_operations", "gpu_suite", "profile_step", "prove"]
)
def test_scripts_run_without_installing_the_project(bare: Path, tmp_path: Path, name: str) -> None:
    """Scripts run from another folder without PYTHONPATH, which ``environment`` removes."""
    process = run(bare, str(ROOT / "scripts" / f"{name}.py"), "--help", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "usage:" in process.stdout


def test_copies_only_tracked_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "kernels").mkdir(parents=True)
    (checkout / "kernels" / "a.py").write_text("committed")
    (checkout / "link").symlink_to("kernels")
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    (checkout / "kernels" / "a.py").write_text("changed")
    (checkout / "scratch.py").write_text("untracked")
    monkeypatch.setattr(rehearsal, "ROOT", checkout)
    tracked_copy(tmp_path / "copy")
    assert (tmp_path / "copy" / "link" / "a.py").read_text() == "changed"
    assert (tmp_path / "copy" / "link").is_symlink()
    assert not (tmp_path / "copy" / "scratch.py").exists()
    monkeypatch.setattr(rehearsal, "ROOT", tmp_path / "copy")
    with pytest.raises(CannotRehearse, match="is not a git checkout"):
        tracked_copy(tmp_path / "other")


def test_marks_every_kind_of_file(tmp_path: Path) -> None:
    for name in ("stage1.md", "stage1.log"):
        (tmp_path / name).write_text("fine")
        assert mark(tmp_path / name).read_text().startswith(MARK)
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert json.loads(mark(tmp_path / "x.json").read_text()) == {"rehearsal": MARK, "a": 1}
    with gzip.open(tmp_path / "trace.json.gz", "wt") as file:
        file.write('{"a": 1}')
    with gzip.open(mark(tmp_path / "trace.json.gz"), "rt") as file:
        assert json.load(file)["rehearsal"] == MARK
    Image.new("RGB", (200, 50), "blue").save(tmp_path / "proof.png")
    with Image.open(mark(tmp_path / "proof.png")) as image:
        assert image.info["Comment"] == MARK
        assert image.size == (200, 70)
        assert image.convert("RGB").getpixel((199, 2)) == (255, 255, 0)
    (tmp_path / "triton-cache.tgz.0").touch()
    mark(tmp_path / "triton-cache.tgz.0")
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"rehearsal"}


def test_does_not_overwrite_gpu_results(tmp_path: Path) -> None:
    (tmp_path / "rehearsal-stage1.md").touch()
    check_results(tmp_path)
    (tmp_path / "stage1.md").touch()
    with pytest.raises(CannotRehearse, match=r"not from a rehearsal, such as stage1.md"):
        check_results(tmp_path)
    with pytest.raises(CannotRehearse, match="is a file"):
        check_results(tmp_path / "stage1.md")


def test_reports_a_missing_package(tmp_path: Path) -> None:
    with pytest.raises(CannotRehearse, match="no-such-package is not installed"):
        bare_python(tmp_path / "venv", ["no-such-package"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("fault", ["", "kernel"])
def test_rehearses_a_stage(stage: int, fault: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A whole stage passes; with a fault injected into the kernels, it fails and reports the failure.

    A stage takes 2 to 5 minutes on two cores.
    """
    with pytest.raises(SystemExit) as ended:
        gpu_suite.main(
            [
                "--stage",
                str(stage),
                "--rehearse",
                "--results",
                str(tmp_path),
                *([f"--plant-fault={fault}"] if fault else []),
            ]
        )
    output = capfd.readouterr().out
    assert ended.value.code == (1 if fault else 0), output
    assert ("parts FAILED" in output) == bool(fault)
    assert len(output) < 20_000
    files = sorted(path.name for path in tmp_path.iterdir())
    assert f"rehearsal-stage{stage}.md" in files
    assert len(files) <= 8
    assert all(name.startswith("rehearsal-") for name in files)
    assert MARK in (tmp_path / f"rehearsal-stage{stage}.md").read_text()
