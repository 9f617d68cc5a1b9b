"""`refimpl doctor`: what is installed, what was built for which architectures, and whether each operation works."""

import sys
from dataclasses import dataclass

from refimpl.commands.terminal import parsed


@dataclass(frozen=True)
class DoctorCommand:
    """Prints versions, what was built and which backends run, and checks each operation against the reference.

    Exits with 1 when an operation disagrees.
    """


def doctor_command(arguments: list[str], program: str = "refimpl doctor") -> None:
    """Prints the report of `refimpl.ops.doctor`."""
    parsed(DoctorCommand, arguments, program)
    from refimpl.ops.doctor import report

    lines, healthy = report()
    print("\n".join(lines))
    if not healthy:
        sys.exit(1)
