"""Run a command, and turn what ends it into one line on standard error and an exit code.

Importing this module imports no other package.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable

from fastcyclegan.errors import UserError, is_out_of_memory, print_line, system_reason
from fastcyclegan.training.signals import as_interrupts

STOPPED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""


def _print_error(line: str) -> None:
    """Print ``line`` to standard error. If that fails, only the exit code can tell."""
    try:
        print_line(line, sys.stderr)
    except OSError:  # Python would fail again at its exit, and change the exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def run(main: Callable[[], int]) -> int:
    """Call ``main`` and return its exit code, or 2 after printing a mistake that the user can fix."""
    try:
        with warnings.catch_warnings():
            # Pillow's name no file. What they warn of has no effect here, or is an error.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return main()
    except UserError as error:
        _print_error(f"error: {error}")
    except BrokenPipeError:
        # The reader of a pipe, such as head, wants no more. Python would fail again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # what a shell shows for SIGPIPE
    except OSError as error:
        # For example a full disk or a folder without write permission: report the system's message.
        file = error.filename
        if not file:
            file = "input or output"
        _print_error(f"error: {file}: {system_reason(error)}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = "the system refused an allocation"
        if str(error):
            reason = str(error).splitlines()[0]
        _print_error(f"error: out of memory: {reason}")
    except KeyboardInterrupt:
        _print_error("stopped")
        return STOPPED
    return 2


def run_to_the_end(main: Callable[[], int]) -> int:
    """Run ``main``, which has no state to save, and let it clean up if a signal ends it."""
    with as_interrupts() as requests:
        code = run(main)
    if code == STOPPED and requests.stop is not None:
        return 128 + requests.stop
    return code
