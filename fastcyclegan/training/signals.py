"""SIGINT, SIGTERM and SIGHUP: the run ends after its iteration, with its files saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType


def on_signals(stop: Callable[[int], object]) -> Callable[[], None]:
    """Have the first SIGINT, SIGTERM or SIGHUP call ``stop`` with its number, a second one kill; return what
    restores the handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None  # Python lets the main thread alone handle signals
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {
        number: handler for number in numbers if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }  # nohup stays nohup

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _: FrameType | None) -> None:
        stop(number)
        restore()
        # Not print: the signal may have come in the middle of one, and the terminal may be gone.
        with contextlib.suppress(OSError):
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving after this iteration (once more to stop at once)\n".encode())

    for number in before:
        signal.signal(number, ask)
    return restore


def on_interrupt(stop: Callable[[int], object]) -> Callable[[], None]:
    """Have the first SIGINT call ``stop`` with its number, a second one interrupt at once; return what
    restores the handler.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        return lambda: None  # the caller has an own way with it

    def ask(number: int, _: FrameType | None) -> None:
        stop(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    return lambda: (signal.signal(signal.SIGINT, before), None)[1]
