"""The one exception for mistakes a user can make."""


class UserError(ValueError):
    """A wrong argument, config field or file; the message alone says what to change.

    The message is one line that names the argument or field, its value and what is allowed.
    `main.py` prints it without a traceback and exits with status 2.
    """
