"""Every experiment on small networks; `refimpl claims --trained` runs them, and each resumes by the weights kept."""

from collections.abc import Callable
from pathlib import Path

from refimpl.paper.computed.quantity import Quantity
from refimpl.paper.trained.small_figures import small_quantities

# Experiment → function of the folder with the weights → measures of the claims table by name.
EXPERIMENTS: dict[str, Callable[[Path], dict[str, list[Quantity]]]] = {"figures": small_quantities}
