"""The plugin that writes down what tests do on a device: words that no test has, files that cannot be
imported, and what a device survives.
"""

from __future__ import annotations

from pathlib import Path

from bench.gpu_outcome import Surroundings
from bench.gpu_test_task import Tests
from bench.launches import breaks_the_device


def test_words_that_no_test_has_are_an_error(around: Surroundings) -> None:
    outcome = Tests("none", ("tests/kernels/test_tune.py",), 60, words=("two_to_the_99",), workers=1).run(
        around, 60
    )
    assert outcome.why == "exit code 4"
    assert "no test is called two_to_the_99" in outcome.failures[0].text


def test_a_file_that_cannot_be_imported_is_told(around: Surroundings, tmp_path: Path) -> None:
    file = tmp_path / "test_broken.py"
    file.write_text("import no_such_package\n\ndef test_x():\n    pass\n")
    outcome = Tests("broken", (str(file),), 60, workers=1).run(around, 60)
    assert not outcome.holds
    assert "No module named 'no_such_package'" in outcome.failures[0].text


def test_what_a_device_survives() -> None:
    assert breaks_the_device("CUDA error: misaligned address")
    assert breaks_the_device("Triton Error [CUDA]: an illegal memory access was encountered")
    assert not breaks_the_device("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert not breaks_the_device("Failed to create tensor map descriptor")
    outer = AssertionError("y is wrong")
    outer.__cause__ = RuntimeError("CUDA error: unspecified launch failure")
    assert breaks_the_device(outer)
