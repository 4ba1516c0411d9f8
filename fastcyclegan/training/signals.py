"""Handle signals from before the start of a run to its end: what they request is done between iterations.

SIGINT, SIGTERM and SIGHUP end the run with its files saved, and SIGUSR1 saves them and lets it continue.
Handlers only note the request. An exception raised in a handler could appear anywhere: in a destructor, which
ignores it, or in code that cannot pass it on, which aborts the process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any


class Requests:
    """What signals, or the caller, have requested of a run."""

    def __init__(self) -> None:
        self.stop: int | None = None
        """The number of the signal that requested the end of the run, 0 if the caller did, otherwise None."""
        self.save = False
        """Whether the state should be saved after the current iteration."""
        self.started = False
        """Whether iterations have begun, so that there is something to save."""
        self.interruptible = False
        """Whether a request to stop may raise KeyboardInterrupt at once: the caller's own code is running."""

    def stopping(self) -> bool:
        """Return whether the run should end."""
        return self.stop is not None


Handler = Callable[[int, FrameType | None], object] | signal.Handlers


class _Handlers:
    """Handlers of signals that this module sets, with those that were there before."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def install(self, name: str, handler: Handler) -> None:
        """Set the handler of the signal ``name``, unless the signal is ignored, as nohup wants it."""
        number = getattr(signal, name, None)  # Windows lacks some
        if number is None or signal.getsignal(number) is signal.SIG_IGN:
            return
        self.before[number] = signal.getsignal(number)
        signal.signal(number, handler)

    def restore(self) -> None:
        """Set the handlers that were there before. Can be called more than once."""
        for number, previous in self.before.items():
            signal.signal(number, previous)


def on_signals(requests: Requests) -> Callable[[], None]:
    """Pass SIGINT, SIGTERM, SIGHUP and SIGUSR1 on to ``requests``.

    A second signal that ends the run is handled as before this call, which by default ends the process at
    once. Returns a function that restores the previous handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None  # Python handles signals only in the main thread
    ending, saving = _Handlers(), _Handlers()

    def request_stop(number: int, _: FrameType | None) -> None:
        requests.stop = number
        ending.restore()
        effect = "saving after this iteration" if requests.started else "stopping"
        _print(f"\n{signal.Signals(number).name}: {effect} (send again to stop at once)\n")

    def request_save(number: int, _: FrameType | None) -> None:
        requests.save = True
        _print(f"\n{signal.Signals(number).name}: saving after this iteration\n")

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        ending.install(name, request_stop)
    saving.install("SIGUSR1", request_save)

    def restore() -> None:
        ending.restore()
        saving.restore()

    return restore


def on_interrupt(requests: Requests) -> Callable[[], None]:
    """Pass the first SIGINT on to ``requests``; a second one raises KeyboardInterrupt at once.

    The first one raises it too while ``requests.interruptible`` is set. Returns a function that restores the
    previous handler.
    """
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or not is_default:
        return lambda: None  # the caller handles SIGINT differently
    handlers = _Handlers()

    def request_stop(number: int, _: FrameType | None) -> None:
        requests.stop = number
        handlers.restore()
        if requests.interruptible:
            raise KeyboardInterrupt

    handlers.install("SIGINT", request_stop)
    return handlers.restore


@contextlib.contextmanager
def nothing_to_save() -> Generator[None]:
    """Handle signals where no run does, such as during imports: SIGINT ends the process at once.

    KeyboardInterrupt could appear in a destructor, which ignores it, or in code that cannot pass it on.
    SIGUSR1 does nothing. Handlers that the caller has set are left alone.
    """
    handlers = _Handlers()
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            handlers.install("SIGINT", signal.SIG_DFL)
        if hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
            # SIG_IGN would mean that runs must ignore it, too.
            handlers.install("SIGUSR1", lambda number, frame: None)
    try:
        yield
    finally:
        handlers.restore()


@contextlib.contextmanager
def as_interrupts() -> Generator[Requests]:
    """Let SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, to clean up.

    ``stop`` of the requests becomes the number of the signal. A second one ends the process at once. Handlers
    that the caller has set are left alone.
    """
    requests, handlers = Requests(), _Handlers()

    def interrupt(number: int, _: FrameType | None) -> None:
        requests.stop = number
        for installed in handlers.before:
            signal.signal(installed, signal.SIG_DFL)
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        defaults = (signal.SIG_DFL, signal.default_int_handler)
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            if hasattr(signal, name) and signal.getsignal(signal.Signals[name]) in defaults:
                handlers.install(name, interrupt)
    try:
        yield requests
    finally:
        handlers.restore()


def _print(text: str) -> None:
    # Calling print is not safe: the signal may have interrupted one, and the terminal may be gone.
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
