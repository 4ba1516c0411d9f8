"""Parts of the GPU suite that run pytest: the outcome if the process fails, crashes or is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gpu_test_task, processes
from bench.gpu_outcome import Context
from bench.gpu_test_task import Tests, outcome_of
from bench.processes import ProcessResult
from tests.bench.parts import running, stand_in


def test_a_killed_pytest_keeps_its_recorded_results(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results recorded before a pytest process is killed are kept, and its own processes are ended.

    The pytest process exceeds its time limit. One of its tests has failed, and one is still running.
    """
    events = [
        {"event": "started", "test": "a"}, {"event": "passed", "test": "a", "text": "", "launches": []},
        {"event": "started", "test": "b"},
        {"event": "failed", "test": "b", "text": "E  far off", "launches": [{"kernel": "k"}]},
        {"event": "started", "test": "c"},
    ]  # fmt: skip
    record = context.work / "slow.1.jsonl"
    (tmp_path / "lines").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "pas')
    stand_in(
        tmp_path / "python",
        f"trap '' INT\ncp {tmp_path}/lines {record}\necho so far\nsleep 77 &\nsleep 77",
        monkeypatch,
    )
    monkeypatch.setattr(processes, "GRACE", 0.2)
    outcome = Tests("slow", ("tests/kernels/test_tune.py",), 9).run(context, 1)
    assert not outcome.holds
    assert outcome.why == "stopped at its time limit of 1 s"
    assert outcome.counts == {"passed": 1, "failed": 1, "unfinished": 1, "skipped": 0}
    assert [failure.where for failure in outcome.failures] == ["b", "c"]
    assert outcome.failures[0].launches == [{"kernel": "k"}]
    assert "did not finish" in outcome.failures[1].text
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


def test_a_device_fault_ends_only_its_own_process(context: Context, tmp_path: Path) -> None:
    """After a test causes a device fault, the other tests run in a new process.

    The test that caused the fault is rerun alone, and its last launch is reported.
    """
    file = tmp_path / "test_crashing.py"
    file.write_text(CRASHING)
    outcome = Tests("crash", (str(file),), 300, workers=2).run(context, 300)
    assert outcome.counts == {"passed": 4, "failed": 2, "unfinished": 0, "skipped": 0}, outcome.output
    failures = {failure.where.rpartition("::")[2]: failure for failure in outcome.failures}
    assert set(failures) == {"test_illegal", "test_wrong"}
    illegal, wrong = failures["test_illegal"], failures["test_wrong"]
    assert "illegal memory access" in illegal.text
    assert illegal.again.startswith("alone, with CUDA_LAUNCH_BLOCKING=1: exit code 70; last launch")
    assert '"kernel": "_instance_norm_small_fwd_kernel"' in illegal.again
    # The report is enough to fix the kernel on another machine: both errors, the layout, the first wrong
    # number, and the launch.
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


def test_reruns_tests_alone_that_ran_out_of_memory_next_to_others(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_test_task, "ROOT", tmp_path)
    monkeypatch.setattr(processes, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "test_large.py").write_text(CROWDED)
    outcome = Tests("large", ("test_large.py",), 100, workers=2).run(context, 100)
    assert outcome.counts == {"passed": 2, "failed": 1, "unfinished": 0, "skipped": 0}, outcome.output
    assert [failure.where for failure in outcome.failures] == ["test_large.py::test_large[2]"]
    assert outcome.note == "2 ran out of memory beside other tests and were rerun alone"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (ProcessResult(0, 1, False, "no tests ran"), "no test passed"),
        (ProcessResult(-11, 1, False, ""), "killed by SIGSEGV"),
        (ProcessResult(4, 1, False, "ERROR: not found"), "exit code 4"),
        (ProcessResult(3, 1, False, "INTERNALERROR"), "exit code 3"),
    ],
)
def test_a_pytest_without_a_result_fails(result: ProcessResult, reason: str) -> None:
    outcome = outcome_of("x", result, 9, [])
    assert not outcome.holds
    assert outcome.why == reason
