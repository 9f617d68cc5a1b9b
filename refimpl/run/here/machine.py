"""The library of the optimizer and the GPU that settings ask for, looked for without importing torch."""

import importlib.util
import os
import sys
from pathlib import Path

from refimpl.packages import install_line
from refimpl.run.config import Config

LIBRARIES = {"adamw8bit": "torchao", "prodigy": "prodigyopt"}
# What Linux has of a GPU that torch can use: NVIDIA's driver (below /proc, or a device in a container), its forms on
# Jetson and WSL, and AMD's.
SIGNS = ("proc/driver/nvidia/gpus/*", "dev/nvidia[0-9]*", "dev/nvmap", "dev/dxg", "dev/kfd")
NO_GPU = "torch sees no GPU; use --train.device cpu"


def machine_problems(config: Config) -> list[str]:
    """What the settings need and this machine lacks, each with the setting that asks for it."""
    return [
        problem
        for problem in (library_problem(config.optimizer.kind), device_problem(config.train.device))
        if problem
    ]


def library_problem(kind: str) -> str:
    """The line that installs an optimizer's library; empty where none is lacking."""
    library = LIBRARIES.get(kind)
    if library is None or importlib.util.find_spec(library) is not None:
        return ""
    return f"optimizer.kind {kind!r} needs the {library} package: {install_line(library)}"


def device_problem(device: str, root: Path = Path("/")) -> str:
    """Why a GPU that is asked for is not here; empty where it may be.

    root  where the system's folders are
    torch is asked where it is loaded. Where it isn't, loading it would take seconds: what the system shows must do.
    """
    if device != "cuda" or _may_see_a_gpu(root):
        return ""
    return f"train.device 'cuda': {NO_GPU}"


def _may_see_a_gpu(root: Path) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.cuda.is_available()
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    return not sys.platform.startswith("linux") or any(any(root.glob(sign)) for sign in SIGNS)
