"""A process that was started with a time limit leaves no processes behind, however it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.bench.parts import ROOT, running


def test_a_process_does_not_outlive_its_killed_parent(tmp_path: Path) -> None:
    """A process ends if its parent is killed without warning, so that it does not keep using the GPU."""
    script = f"""
from pathlib import Path
from bench import processes
print("begun", flush=True)
processes.run_process(["sleep", "79.5"], 60, {{"PATH": "/usr/bin:/bin"}}, Path({str(tmp_path / "log")!r}))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 60
        while not running("sleep 79.5") and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    deadline = time.monotonic() + 60
    while running("sleep 79.5") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running("sleep 79.5")
