"""The exception that the command line reports without a traceback, and helpers for one-line messages."""


class UserError(Exception):
    """A mistake that the user can fix. The message is one clear line that names the cause."""


def system_reason(error: OSError) -> str:
    """Return the operating system's message for ``error``, such as "No space left on device"."""
    if error.strerror is None:
        return str(error)
    return error.strerror


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return the message of ``error`` as one line of at most ``limit`` characters.

    If the message is empty, return the name of the error's class.
    """
    text = " ".join(str(error).split())[:limit]
    if not text:
        return type(error).__name__
    return text
