"""The one exception that the command line shows without a traceback."""


class UserError(Exception):
    """Something that the user can put right. The message is one clear line that names the thing."""


def system_reason(error: OSError) -> str:
    """Return what the system says of ``error``, such as "No space left on device"."""
    if error.strerror is None:
        return str(error)
    return error.strerror


def one_line(error: BaseException, most: int = 200) -> str:
    """Return the message of ``error`` on one line of at most ``most`` characters, else its class."""
    text = " ".join(str(error).split())[:most]
    if not text:
        return type(error).__name__
    return text
