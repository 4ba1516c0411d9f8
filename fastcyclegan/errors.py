"""The one exception that the command line shows without a traceback."""


class UserError(Exception):
    """Something that the user can put right. The message is one clear line that names the thing."""
