"""Handle SIGINT, SIGTERM and SIGHUP: the run ends after the current iteration, with its files saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType


def on_signals(stop: Callable[[int], object]) -> Callable[[], None]:
    """Make the first SIGINT, SIGTERM or SIGHUP call ``stop``, and a second one end the process at once.

    ``stop`` is called with the number of the signal. Returns a function that restores the previous handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None  # Python handles signals only in the main thread
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in list(before):
        if before[number] is signal.SIG_IGN:  # respect nohup
            del before[number]

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request_stop(number: int, _: FrameType | None) -> None:
        stop(number)
        restore()
        # Calling print is not safe: the signal may have interrupted one, and the terminal may be gone.
        with contextlib.suppress(OSError):
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving after this iteration (send again to stop at once)\n".encode())

    for number in before:
        signal.signal(number, request_stop)
    return restore


def on_interrupt(stop: Callable[[int], object]) -> Callable[[], None]:
    """Make the first SIGINT call ``stop`` with its number, and a second one raise KeyboardInterrupt at once.

    Returns a function that restores the previous handler.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        return lambda: None  # the caller handles SIGINT differently

    def restore() -> None:
        signal.signal(signal.SIGINT, before)

    def request_stop(number: int, _: FrameType | None) -> None:
        stop(number)
        restore()

    signal.signal(signal.SIGINT, request_stop)
    return restore
