"""The one error class for bad input: its message is all the user sees."""


class InputError(ValueError):
    """Bad input from the user: names the value, the place, and what to do about it.

    Library callers may catch it as ValueError; the command line prints the message and exits with 2.
    """
