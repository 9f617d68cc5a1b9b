"""Kohya's sd-scripts as a library, for the scripts beside this file."""

import sys

from tests.peers.stand_ins import stand_in_for


def begin(folder: str) -> None:
    """Makes `library` and `networks` importable."""
    import diffusers  # before the stand-ins, so that it does not take them for the packages

    assert diffusers.__version__
    stand_in_for(
        "torchvision",
        "bitsandbytes",
        "lion_pytorch",
        "open_clip",
        "timm",
        "fairscale",
        "voluptuous",
        "imagesize",
    )
    sys.path.insert(0, folder)
    sys.argv = sys.argv[:1]
