"""Parts of the GPU suite that are tests: what a pytest that fails, crashes or is killed leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gpu_test_task, processes
from bench.gpu_outcome import Surroundings
from bench.gpu_test_task import Tests, outcome_of
from bench.processes import Ended
from tests.bench.parts import running, stand_in


def test_a_pytest_that_is_killed_has_told_what_it_knew(
    around: Surroundings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is too slow, with one failure behind it and one test in its hands, and processes that would
    outlive it.
    """
    events = [
        {"event": "started", "test": "a"}, {"event": "passed", "test": "a", "text": "", "launches": []},
        {"event": "started", "test": "b"},
        {"event": "failed", "test": "b", "text": "E  far off", "launches": [{"kernel": "k"}]},
        {"event": "started", "test": "c"},
    ]  # fmt: skip
    record = around.work / "slow.1.jsonl"
    (tmp_path / "lines").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "pas')
    stand_in(
        tmp_path / "python",
        f"trap '' INT\ncp {tmp_path}/lines {record}\necho so far\nsleep 77 &\nsleep 77",
        monkeypatch,
    )
    monkeypatch.setattr(processes, "GRACE", 0.2)
    outcome = Tests("slow", ("tests/kernels/test_tune.py",), 9).run(around, 1)
    assert not outcome.holds
    assert outcome.why == "ended at its limit of 1 s"
    assert outcome.counts == {"passed": 1, "failed": 1, "unfinished": 1, "skipped": 0}
    assert [failure.where for failure in outcome.failures] == ["b", "c"]
    assert outcome.failures[0].launches == [{"kernel": "k"}]
    assert "did not end" in outcome.failures[1].text
    assert "so far" in outcome.output
    assert not running("sleep 77")


CRASHING = """
import pytest, torch
from fastcyclegan.kernels import instance_norm

X = torch.randn(1, 4, 5, 3)

def test_first():
    instance_norm(X, impl="triton")

def test_illegal():
    instance_norm(X, impl="triton")
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_wrong():
    from fastcyclegan.testing import assert_parity
    y = instance_norm(X, impl="triton")
    assert_parity("y", torch.where(torch.arange(3) == 1, y + 1, y), y, y.double(), torch.float32)

@pytest.mark.parametrize("n", range(3))
def test_later(n):
    pass
"""


def test_a_fault_of_the_device_ends_its_process_alone(around: Surroundings, tmp_path: Path) -> None:
    """The others go on in a new process; the one is run again alone, and the last launch before it is
    known."""
    file = tmp_path / "test_crashing.py"
    file.write_text(CRASHING)
    outcome = Tests("crash", (str(file),), 100, workers=2).run(around, 100)
    assert outcome.counts == {"passed": 4, "failed": 2, "unfinished": 0, "skipped": 0}, outcome.output
    found = {failure.where.rpartition("::")[2]: failure for failure in outcome.failures}
    assert set(found) == {"test_illegal", "test_wrong"}
    illegal, wrong = found["test_illegal"], found["test_wrong"]
    assert "illegal memory access" in illegal.text
    assert illegal.again.startswith("alone, with CUDA_LAUNCH_BLOCKING=1: exit code 70; last launch")
    assert '"kernel": "_instance_norm_small_fwd_kernel"' in illegal.again
    # Enough to mend it elsewhere: both errors, layout, the first wrong number, what was launched and how.
    assert "relative error" in wrong.text
    assert (
        "float32 [1, 4, 5, 3] strides [60, 15, 3, 1]; 20 of 60 elements are wrong, first at [0, 0, 0, 1]:"
        in wrong.text
    )
    (launch,) = wrong.launches
    assert launch["configuration"]["BLOCK_S"] == 16
    assert launch["arguments"][0].startswith("float32[1, 4, 5, 3] strides [60, 15, 3, 1] aligned")
    assert not wrong.again


CROWDED = """
import os
import pytest

@pytest.mark.parametrize("n", range(3))
def test_large(n):
    if n == 1 and os.environ.get("PYTEST_XDIST_WORKER"):
        raise RuntimeError("CUDA out of memory. Tried to allocate 8.00 GiB")
    if n == 2:
        raise RuntimeError("CUDA out of memory. Tried to allocate 999.00 GiB")
"""


def test_what_finds_no_memory_beside_others_is_run_alone(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_test_task, "ROOT", tmp_path)
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "test_large.py").write_text(CROWDED)
    outcome = Tests("large", ("test_large.py",), 100, workers=2).run(around, 100)
    assert outcome.counts == {"passed": 2, "failed": 1, "unfinished": 0, "skipped": 0}, outcome.output
    assert [failure.where for failure in outcome.failures] == ["test_large.py::test_large[2]"]
    assert outcome.note == "2 found no memory beside others and ran again alone"


@pytest.mark.parametrize(
    ("ended", "why"),
    [
        (Ended(0, 1, False, "no tests ran"), "no test passed"),
        (Ended(-11, 1, False, ""), "killed by SIGSEGV"),
        (Ended(4, 1, False, "ERROR: not found"), "exit code 4"),
        (Ended(3, 1, False, "INTERNALERROR"), "exit code 3"),
    ],
)
def test_a_pytest_without_a_result_does_not_hold(ended: Ended, why: str) -> None:
    outcome = outcome_of("x", ended, 9, [])
    assert not outcome.holds
    assert outcome.why == why
