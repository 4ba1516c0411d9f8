"""compile_kernels --warm fills Triton's cache for a run and reports it. A second call compiles nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fastcyclegan.checkpoints.run_files import write_config
from fastcyclegan.config import ModelConfig, TrainConfig
from tests.devtools.compiling import run

pytest.importorskip("triton")

# Runs the command with each list of arguments in turn, and prints its exit codes and outputs as JSON. Only
# three of the kernels are compiled.
COMMANDS = """
import contextlib, dataclasses, io, json, sys
from fastcyclegan.kernel_gate import command as kernel_gate
from fastcyclegan.kernel_gate import warm

full = warm.jobs_of
def jobs_of(*a):
    needed = full(*a)
    return dataclasses.replace(needed, jobs=tuple(job for job in needed.jobs if "sum" in job.kernel)[:3])
warm.jobs_of = jobs_of

def run(arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = kernel_gate.main(arguments)
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()

if __name__ == "__main__":
    print(json.dumps([run(arguments) for arguments in json.loads(sys.argv[1])]))
"""


def test_filling_the_cache_reports_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage of filling the cache is reported, and invalid flags and folders are rejected."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder, TrainConfig(model=ModelConfig(netG="resnet_1blocks", impl="reference")))
    (tmp_path / "file").write_text("")
    networks = "--netG resnet_1blocks --ngf 8 --ndf 8 --netD pixel"
    flags = f"{networks} --crop_size 32 48 --load_size 48 --lambda_identity 0".split()
    chip = ["--arch", "sm_90"]
    wrong = {
        "--warm: this machine has no GPU; name the chip with --arch": ["--warm"],
        "--warm: nowhere is not a run folder: it has no config.json": ["--warm", "nowhere", *chip],
        "--warm: there are no kernels to compile: PyTorch computes resnet_1blocks": [
            "--warm",
            str(folder),
            *chip,
        ],
        "--warm: --name and ": ["--warm", str(folder), *chip, "--name", "other"],
        "--json cannot be combined with --warm": ["--warm", *chip, "--json", "x.json"],
        "netG": ["--warm", *chip, "--netG", "resnet_none"],
        "unrecognized arguments: run (a run's folder and the flags of train.py need --warm)": [
            "run",
            *chip,
        ],
        f"{tmp_path}: Is a directory": [*chip, "--json", str(tmp_path)],
        f"{tmp_path / 'file'}: File exists": [*chip, "--out", str(tmp_path / "file")],
    }
    script = tmp_path / "commands.py"
    script.write_text(COMMANDS)
    process = run(
        [str(script), json.dumps([*wrong.values(), ["--warm", *chip, *flags], ["--warm", *chip, *flags]])]
    )
    assert process.returncode == 0, process.stdout + process.stderr
    *refused, first, second = json.loads(process.stdout)
    for message, (code, _, error) in zip(wrong, refused, strict=True):
        assert code == 2, error
        assert message in error
    networks = "resnet_1blocks (ngf 8, instance norm) and pixel (ndf 8)"
    summary = f"{networks}, batch 1, 48x32, bf16: 3 kernels for sm_90"
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert re.match(
        rf"{re.escape(summary)}; compiling 3 that are missing from Triton's cache in [12] processes,"
        r" about [34] s\n",
        first[1],
    )
    assert re.search(
        r"compiled 3 in [\d.]+ s; the first iteration will time [1-9]\d+ tiles for [1-9]\d+ choices,"
        r" about \d s\n$",
        first[1],
    )
    assert second[1] == f"{summary}, all of them already in Triton's cache\n"
