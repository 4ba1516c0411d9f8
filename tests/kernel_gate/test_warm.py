"""compile_kernels --warm: Triton's cache filled for a run, said in a line or two, and found full the second
time.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fastcyclegan.checkpoints.run_files import write_config
from fastcyclegan.config import ModelConfig, TrainConfig
from tests.devtools.compiling import run

pytest.importorskip("triton")

# The command with each list of arguments, one after the other: what it returns and prints. Of what there is
# to compile three are.
COMMANDS = """
import contextlib, dataclasses, io, json, sys
from fastcyclegan.kernel_gate import command as kernel_gate
from fastcyclegan.kernel_gate import warm

full = warm.jobs_of
def jobs_of(*a):
    found = full(*a)
    return dataclasses.replace(found, jobs=tuple(job for job in found.jobs if "sum" in job.kernel)[:3])
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


def test_filling_the_cache_says_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the flags of train.py, and for a run's folder; what cannot be done is one line."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder, TrainConfig(model=ModelConfig(netG="resnet_1blocks", impl="reference")))
    (tmp_path / "file").write_text("")
    networks = "--netG resnet_1blocks --ngf 8 --ndf 8 --netD pixel"
    flags = f"{networks} --crop_size 32 --load_size 32 --lambda_identity 0".split()
    here = ["--arch", "sm_90"]
    wrong = {
        "--warm: this machine has no GPU: name the chip with --arch": ["--warm"],
        "--warm: nowhere is no folder of a run: it has no config.json": ["--warm", "nowhere", *here],
        "--warm: there are no kernels to compile: PyTorch computes resnet_1blocks": [
            "--warm",
            str(folder),
            *here,
        ],
        "--warm: --name names a run, and so does": ["--warm", str(folder), *here, "--name", "other"],
        "--json is the gate's and says nothing with --warm": ["--warm", *here, "--json", "x.json"],
        "netG": ["--warm", *here, "--netG", "resnet_none"],
        "unrecognized arguments: run (a run's folder and the flags of train.py come with --warm)": [
            "run",
            *here,
        ],
        f"{tmp_path}: Is a directory": [*here, "--json", str(tmp_path)],
        f"{tmp_path / 'file'}: File exists": [*here, "--out", str(tmp_path / "file")],
    }
    script = tmp_path / "commands.py"
    script.write_text(COMMANDS)
    done = run(
        [str(script), json.dumps([*wrong.values(), ["--warm", *here, *flags], ["--warm", *here, *flags]])]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *refused, first, second = json.loads(done.stdout)
    for message, (code, _, error) in zip(wrong, refused, strict=True):
        assert code == 2, error
        assert message in error
    here_are = "resnet_1blocks and pixel, batch 1, 32x32, bf16: 3 kernels for sm_90"
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert re.match(
        rf"{here_are}, compiling 3 that Triton's cache lacks in [12] processes, about [34] s\n", first[1]
    )
    assert re.search(
        r"compiled 3 in [\d.]+ s; tiles to be timed by the first iteration: [1-9]\d+ for [1-9]\d+ choices,"
        r" about \d s\n$",
        first[1],
    )
    assert second[1] == f"{here_are}, all are in Triton's cache\n"
