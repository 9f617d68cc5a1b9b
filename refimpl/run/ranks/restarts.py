"""How often torchrun has started the workers of a job anew (`torchrun --max-restarts`)."""

import os


def restarts() -> int:
    """How often torchrun has put these workers in the place of ones that failed; 0 without torchrun."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
