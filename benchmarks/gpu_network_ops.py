"""The network's own operations on the GPU: rows of GEGLU and of GroupNorm + SiLU beside eager and torch.compile."""

from collections.abc import Iterator
from typing import Any


def network_rows(device: str, small: bool, repeats: int) -> Iterator[dict[str, Any]]:
    yield from ()
