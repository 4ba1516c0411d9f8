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
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in list(before):
        if before[number] is signal.SIG_IGN:  # nohup stays nohup
            del before[number]

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

    def restore() -> None:
        signal.signal(signal.SIGINT, before)

    def ask(number: int, _: FrameType | None) -> None:
        stop(number)
        restore()

    signal.signal(signal.SIGINT, ask)
    return restore
