"""Where a function of an installed package stands."""

import inspect
from collections.abc import Callable
from typing import Any


def line_of(function: Callable[..., Any]) -> int:
    """The line on which a function begins, its decorators left out; 1 where that is unknown."""
    try:
        lines, first = inspect.getsourcelines(inspect.unwrap(function))
    except (OSError, TypeError):
        return 1
    return first + next(
        (i for i, line in enumerate(lines) if line.lstrip().startswith(("def ", "class "))), 0
    )
