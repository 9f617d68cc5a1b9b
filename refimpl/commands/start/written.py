"""What `refimpl init` has chosen, before it is written."""

from dataclasses import dataclass

from refimpl.run.config import Config


@dataclass(frozen=True)
class Written:
    """Settings to be written, and what is to be said of them."""

    config: Config
    """The settings."""
    reasons: dict[str, str]
    """Why a setting has its value, by section and name."""
    summary: str
    """What was found, for the file's first lines."""
    report: list[str]
    """What was found, for the terminal."""
    estimate: str = ""
    """The options with which `refimpl estimate` says the speed of this run, such as --measure."""
