"""The proof of parity and speed: its printed lines, its image, and no speeds if parity fails."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import prove
from bench.baselines import plain_networks
from bench.parity import EXACT, FORWARD, Judge, require
from bench.providers import Provider, Unavailable, train_step
from fastcyclegan.data.batch import Batch
from fastcyclegan.kernels.cpu.library import why_not_cpp
from tests.bench.small_steps import SMALL


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "compared_config", lambda model: SMALL)


def run(*arguments: str, folder: Path) -> int:
    return prove.main([*arguments, "--size", "32", "--seconds", "3", "--output", str(folder / "proof.png")])


def test_prints_and_draws_a_passing_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_compile", folder=tmp_path) == 0
    logged = capsys.readouterr().out
    settings = "training CycleGAN at 32x32 (set by --size), batch 1, resnet_1blocks (ngf 8, instance norm)"
    assert f"{settings} and basic (ndf 8); 200 and 200 images" in logged
    for quantity in (
        "losses of iteration 1",
        "images of iteration 1",
        "gradients of G_AB",
        "weight change of D_A",
    ):
        assert quantity in logged
    assert "FAILS" not in logged
    rates = {
        line[:18].strip(): line[18:].split()
        for line in logged.splitlines()
        if line[:18].strip() in ("iterations/s", "images/s")
    }
    assert float(rates["images/s"][0]) == pytest.approx(2 * float(rates["iterations/s"][0]), rel=0.02)
    with Image.open(tmp_path / "proof.png") as image:
        assert image.size[0] > 6 * 128
        assert np.asarray(image).std() > 10


@pytest.mark.skipif(why_not_cpp() != "", reason=f"impl='cpp' {why_not_cpp()}")
def test_with_kernels_for_the_processor_nothing_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", None)
    assert run(folder=tmp_path) == 0
    logged = capsys.readouterr().out
    assert "On a CPU nothing is compiled: the speed-up is that of the C++ kernels" in logged
    assert "compiling fastcyclegan first" not in logged
    assert "not compiled: " not in logged


def test_shows_no_speed_if_parity_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_compile", "--plant-fault", folder=tmp_path) == 1
    logged = capsys.readouterr().out
    assert "PARITY FAILS" in logged
    assert "iterations/s" not in logged
    assert not (tmp_path / "proof.png").exists()


def silent(line: str) -> None:
    pass


def built_in(size: int, seed: int) -> list[Batch]:
    return prove.batches_of(prove.parse(["--seed", str(seed)]), SMALL, size, silent)[0]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", prove.SIZES)
def test_checks_parity_correctly_on_built_in_images_of_every_size(size: int, seed: int) -> None:
    judge = Judge(
        plain_networks(SMALL),
        built_in(size, seed)[: prove.STEPS["cpu"]],
        "cpu",
        SMALL,
    )
    assert judge.float64_difference() <= EXACT
    correct, faulty = (train_step("ours", judge.nets, "cpu", SMALL, fault=fault) for fault in (False, True))
    require("ours", judge.judge("ours", correct))
    assert not any(d.passes for d in judge.judge("ours", faulty) if d.quantity in FORWARD)


@pytest.mark.parametrize(("seconds", "size"), [(0.1, 128), (0.6, 96), (1.3, 96), (1.4, 64), (100.0, 64)])
def test_slower_machines_get_smaller_images(
    seconds: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = itertools.count(0, seconds)
    monkeypatch.setattr(prove, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    chosen, reason = prove.suitable_size(SMALL)
    assert chosen == size
    assert f"takes {seconds:.1f} s here" in reason


def folder_of(folder: Path, draw: Callable[[int], Any], count: int = 6) -> str:
    folder.mkdir()
    for n in range(count):
        Image.fromarray(np.asarray(draw(n), dtype=np.uint8)).save(folder / f"{n}.png")
    return str(folder)


def noise(n: int) -> Any:
    return np.random.default_rng(n).integers(0, 256, (48, 48, 3))


def grey(n: int) -> Any:
    return np.full((48, 48, 3), 40 * n)


def test_rejects_a_dataset_of_flat_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--data_A", folder_of(tmp_path / "A", noise), "--data_B", folder_of(tmp_path / "B", grey)]
    assert run("--no_compile", *folders, folder=tmp_path) == 2
    printed = capsys.readouterr()
    paths = r"([^\n]*/B/\d\.png, )+[^\n]*/B/\d\.png and \d more"
    assert re.fullmatch(rf"error: cannot check parity: [^\n]* of a single colour: {paths}\n", printed.err)
    assert "PARITY FAILS" not in printed.out
    assert "iterations/s" not in printed.out


def test_skips_flat_images_among_others_and_lists_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def mostly_flat(n: int) -> Any:
        return grey(n) if n % 2 else noise(n)

    folders = [
        "--data_A",
        folder_of(tmp_path / "A", noise),
        "--data_B",
        folder_of(tmp_path / "B", mostly_flat),
    ]
    assert run("--no_compile", *folders, folder=tmp_path) == 0
    logged = capsys.readouterr().out
    (line,) = (
        line
        for line in logged.splitlines()
        if line.startswith("skipped, because parity cannot be checked on images of a single colour")
    )
    assert set(re.findall(r"\w/\d.png", line)) <= {"B/1.png", "B/3.png", "B/5.png"}


def test_uses_the_samples_with_the_most_contrast_first(tmp_path: Path) -> None:
    def fainter(n: int) -> Any:
        return 100 + noise(n) // (n + 2)

    folders = ["--data_A", folder_of(tmp_path / "A", noise), "--data_B", folder_of(tmp_path / "B", fainter)]
    batches, _ = prove.batches_of(prove.parse(folders), SMALL, 32, silent)
    assert len(batches) == prove.INPUTS
    deviations = [batch.B.std().item() for batch in batches]
    assert deviations == sorted(deviations, reverse=True)


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tyro", "nvidia", "tensorboard", "safetensors", "huggingface_hub"}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = [SCRIPT, "--help"]
import runpy
runpy.run_path(SCRIPT, run_name="__main__")
"""


def test_runs_without_installation_and_without_optional_packages(tmp_path: Path) -> None:
    script = Path(prove.__file__).parents[1] / "scripts" / "prove.py"
    code = f"SCRIPT = {str(script)!r}\n" + BLOCKED
    # Python searches the same folder as for a script that is started by its file name.
    environment = {**os.environ, "PYTHONPATH": str(script.parent)}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "--data_A" in process.stdout


def test_runs_on_the_users_own_images(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof runs on the user's images, even without a C++ compiler, whose absence is only reported."""

    def no_compiler(self: Provider, device: str) -> None:
        if self.mode is not None:
            raise Unavailable("no C++ compiler found")

    monkeypatch.setattr(Provider, "require", no_compiler)
    assert run("--data_A", str(dataset / "trainA"), "--data_B", str(dataset / "trainB"), folder=tmp_path) == 0
    logged = capsys.readouterr().out
    # Some images are held out, as in training.
    assert re.search(
        rf"; [345] and [34] images \(not counting held-out images\) from {dataset / 'trainA'} and"
        rf" {dataset / 'trainB'}",
        logged,
    )
    assert "not compiled: no C++ compiler found" in logged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data_A {0}", "--data_A and --data_B must be given together"),
        ("--seconds 0", "--seconds must be more than 0"),
        ("--output {0}/nowhere/proof.png", "--output must be a .png file in an existing folder"),
        ("--output proof.jpg", "--output must be a .png"),
    ],
)
def test_reports_bad_arguments(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        prove.main(arguments.format(tmp_path).split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_reports_a_size_that_the_networks_cannot_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in ("30", "28"):
        assert prove.main(["--size", size, "--output", str(tmp_path / "proof.png")]) == 2
        assert capsys.readouterr().err == f"error: --size must be a multiple of 4, at least 32, got {size}\n"
    assert not list(tmp_path.iterdir())


def test_reports_missing_images_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    folders = ["--data_A", str(tmp_path / "empty"), "--data_B", str(tmp_path / "missing")]
    assert run(*folders, folder=tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
