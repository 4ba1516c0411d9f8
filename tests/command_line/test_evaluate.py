"""The command line of evaluate.py: flags, mistakes, exit codes, and what the help imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcyclegan.command_line.evaluate import evaluate
from tests.conftest import write_images
from tests.metrics.script_networks import small_network
from tests.training.limits import no_file_longer_than

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with folders of images, A and B, and a feature network."""
    pytest.importorskip("torchmetrics")
    write_images(tmp_path / "A", 4, seed=1)
    write_images(tmp_path / "B", 4, seed=2)
    small_network(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_flags(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "--fake A --real=B --metrics kid l1 --features small0.pt --kid-subsets 3 --resample 0 --json a.json"
    )
    assert evaluate([*line.split(), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "A against B\n" in out
    written = json.loads((folder / "a.json").read_text())
    assert list(written["metrics"]) == ["kid", "l1"]
    assert written["protocol"]["kid"]["subsets"] == 3
    assert written["intervals"] == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "give two folders of images, --fake and --real, or --weights"),
        ("--fake A", "give two folders of images, --fake and --real, or --weights"),
        ("--fake A --real none", "none: no such folder"),
        (
            "--fake A --real B --seed 0",
            "--seed needs --weights: the images in --fake are translations already",
        ),
        ("--fake A --real B --resample few", "--resample must be an integer, got 'few'"),
        (
            "--fake A --real B --features_size small",
            "--features_size must be an integer or none, got 'small'",
        ),
        (
            "--fake A --real B --metrics fit",
            "there is no metric 'fit'; the metrics are fid, kid, l1, psnr, ssim, lpips",
        ),
        ("--fake A --real B --metric fid", "unknown flag --metric; did you mean --metrics?"),
        ("--fake A --real B C", "unknown argument 'C'"),
        ("--fake A --real", "--real: no value given"),
        ("--fake A --real=", "--real: the value is empty"),
        ("--weights none --dataroot A", "none: no such file or folder"),
        ("--weights small0.pt --dataroot A", "small0.pt: cannot be loaded: it is a TorchScript or .tar file"),
        (
            "--fake A --real B --features A/000.png",
            "A/000.png: not a TorchScript module that torch can load (torch.jit.save writes one): ",
        ),
        ("--fake A --real B --metrics l1 --page none/a.html", "none/a.html: there is no folder "),
    ],
)
def test_a_mistake_is_one_line(
    folder: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert evaluate([*line.split(), "--json", "a.json"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_full_disk(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers have been printed by then."""
    line = "--fake A --real B --metrics l1 --device cpu --json a.json"
    with no_file_longer_than(100):
        assert evaluate(line.split()) == 2
    out, error = capsys.readouterr()
    assert "L1" in out
    assert error == "error: a.json: File too large\n"
    assert not (folder / "a.json").exists()


def test_the_help_imports_neither_torch_nor_numpy(tmp_path: Path) -> None:
    for name in ("torch", "numpy", "torchmetrics", "PIL"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError\n")
    code = "import sys; from fastcyclegan.commands import evaluate; sys.exit(evaluate())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}
    command = [sys.executable, "-P", "-c", code, "--help"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (process.returncode, process.stderr) == (0, "")
    for flag in ("--fake", "--weights", "--resample", "--features", "--lpips_net", "--compare"):
        assert flag in process.stdout
