"""A compile worker that is killed is reported as a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.devtools.iterations import run

pytest.importorskip("triton")

DEATH = """
import os, pathlib, signal
iteration("bf16", "auto")
jobs = list({job for _, job in recorded})[:8]
def kill(count, total):
    for entry in pathlib.Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            if b"compile_worker" in command and command.split(b"\\0")[-2] == str(os.getpid()).encode():
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ValueError):
            pass
outcome = compile_ahead.compile_ahead(jobs, kill, 2)
print(json.dumps([outcome.compiled < len(jobs), [kernel for kernel, _ in outcome.failures]]))
"""


def test_a_killed_compiler_is_reported(tmp_path: Path) -> None:
    assert run(DEATH, tmp_path) == [True, [""]]
