"""The command compile_kernels as it is called: what it refuses, prints and writes. All that ships is compiled
by a call of it, not here.
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


def test_interpreted_kernels_are_refused(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr


def test_the_command_writes_what_it_is_asked_for(tmp_path: Path) -> None:
    """One architecture and one dtype of one kernel's worth: --json and --out, and every kernel of the
    registry in the table.
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
    done = run([str(script), *options])
    assert done.returncode == 0, done.stdout + done.stderr
    sources = "".join(path.read_text() for path in (ROOT / "kernels").glob("*_triton.py"))
    kernels = sorted(re.findall(r"^@kernel\n.*\ndef _(\w+)", sources, re.MULTILINE))
    assert sorted(re.findall(r"^sm_90 +(\w+) ", done.stdout, re.MULTILINE)) == kernels
    assert len(list((tmp_path / "cubins").glob("*.cubin"))) == len(kernels)
    assert f"all {len(kernels)} pass" in done.stdout
