"""What ends a command: a mistake, the system, the memory or a signal, each as one line and an exit code."""

from __future__ import annotations

import signal

import pytest

from fastcyclegan.command_line.exit_codes import STOPPED, run, run_to_the_end
from fastcyclegan.errors import UserError


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no such\nfolder"), r"error: no such\nfolder"),
        (PermissionError(13, "Permission denied", "file"), "error: file: Permission denied"),
        (OSError(28, "No space left on device"), "error: input or output: No space left on device"),
        (MemoryError(), "error: out of memory: the system refused an allocation"),
        (RuntimeError("CUDA out of memory.\nMore"), "error: out of memory: CUDA out of memory."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_mistake_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda: raising(error)) == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        run(lambda: raising(RuntimeError("a bug")))


def test_the_exit_code_of_the_command_is_returned() -> None:
    assert [run(lambda: 1), run_to_the_end(lambda: 1)] == [1, 1]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_lets_a_command_clean_up(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = getattr(signal, name)
    cleaned = []

    def main() -> int:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(name)
        return 0

    assert run_to_the_end(main) == 128 + number
    assert cleaned == [name]
    assert capsys.readouterr().err == "stopped\n"
    assert signal.SIGINT + 128 == STOPPED
