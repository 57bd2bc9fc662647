"""The one exception for mistakes a user can make."""


class UserError(ValueError):
    """A wrong argument, config field or file; the message alone says what to change.

    The message is one line that names the argument or field, its value and what is allowed.
    `main.py` prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        # What a user typed is part of it, and may hold any of the characters that end a line.
        super().__init__("".join(c if c.splitlines() == [c] else repr(c)[1:-1] for c in message))
