"""Tests of the command compile_kernels: the settings that it rejects, its output and its files.

The complete set of kernels is compiled by running the command itself, not by these tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.devtools.compiling import ROOT, run

pytest.importorskip("triton")


def test_interpreted_kernels_are_rejected(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env=environment
    )
    assert process.returncode == 2
    assert "TRITON_INTERPRET is set" in process.stderr


def test_the_command_writes_reports_and_cubins(tmp_path: Path) -> None:
    """With --json and --out, the table lists every registered kernel, and a cubin of each is written.

    Only one specialisation of each kernel is compiled, for one architecture and one dtype.
    """
    code = "import sys; from fastcyclegan.kernel_gate import command as gate\n"
    code += (
        "full = gate.shipped_jobs; gate.shipped_jobs = lambda *a: list({j.kernel: j for j in"
        " full(*a)}.values())\n"
    )
    code += "if __name__ == '__main__': sys.exit(gate.main())"
    script = tmp_path / "short.py"
    script.write_text(code)
    options = [
        "--arch",
        "sm_90",
        "--dtype",
        "bf16",
        "--configs",
        "first",
        "--json",
        str(tmp_path / "r.json"),
        "--out",
        str(tmp_path / "cubins"),
    ]
    process = run([str(script), *options])
    assert process.returncode == 0, process.stdout + process.stderr
    sources = "".join(path.read_text() for path in (ROOT / "kernels").glob("*_triton.py"))
    kernels = sorted(re.findall(r"^@kernel\n.*\ndef _(\w+)", sources, re.MULTILINE))
    assert sorted(re.findall(r"^sm_90 +(\w+) ", process.stdout, re.MULTILINE)) == kernels
    assert len(list((tmp_path / "cubins").glob("*.cubin"))) == len(kernels)
    assert f"all {len(kernels)} specialisations pass" in process.stdout
