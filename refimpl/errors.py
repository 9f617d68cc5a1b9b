"""The error class for bad input, whose message is all the user sees, and torch's phrases for too little memory."""


class InputError(ValueError):
    """Bad input from the user: names the value, the place, and what to do about it.

    Library callers may catch it as ValueError; the command line prints the message and exits with 2.
    """


# Phrases in torch's messages: on the CPU, for a size that overflows, and on the GPU.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Storage size calculation overflowed",
    "out of memory",
)
