"""The pytest plugin that records tests on a device.

Keywords that match no test and files that cannot be imported are errors, and device errors are classified.
"""

from __future__ import annotations

from pathlib import Path

from bench.gpu_outcome import Context
from bench.gpu_test_task import Tests
from bench.launches import is_device_fault


def test_keywords_that_match_no_test_are_an_error(context: Context) -> None:
    outcome = Tests("none", ("tests/kernels/test_tune.py",), 60, keywords=("two_to_the_99",), workers=1).run(
        context, 60
    )
    assert outcome.why == "exit code 4"
    assert "no GPU test has two_to_the_99 in its name" in outcome.failures[0].text


def test_reports_a_file_that_cannot_be_imported(context: Context, tmp_path: Path) -> None:
    file = tmp_path / "test_broken.py"
    file.write_text("import no_such_package\n\ndef test_x():\n    pass\n")
    outcome = Tests("broken", (str(file),), 60, workers=1).run(context, 60)
    assert not outcome.holds
    assert "No module named 'no_such_package'" in outcome.failures[0].text


def test_recognises_errors_that_break_the_device() -> None:
    assert is_device_fault("CUDA error: misaligned address")
    assert is_device_fault("Triton Error [CUDA]: an illegal memory access was encountered")
    assert not is_device_fault("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert not is_device_fault("Failed to create tensor map descriptor")
    outer = AssertionError("y is wrong")
    outer.__cause__ = RuntimeError("CUDA error: unspecified launch failure")
    assert is_device_fault(outer)
