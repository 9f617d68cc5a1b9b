"""The card that a run is planned for: this machine's, one that is named, or none."""

import importlib
import os
from pathlib import Path

import torch

from refimpl.errors import InputError
from refimpl.ops import KernelNotBuilt, load_ops
from refimpl.train.budget.cards import Card, find_card, this_card

AUTO, CPU = "auto", "cpu"
DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU that NVIDIA's driver has found
DEVICES = Path("/dev")


def planned_card(gpu: str) -> Card | None:
    """The card that `--gpu` names; under "auto" this machine's, or None for its CPU.

    Raises InputError for an unknown card, and for a GPU of this machine that torch can't see.
    """
    if gpu == CPU:
        return None
    if gpu != AUTO:
        return find_card(gpu)
    if torch.cuda.is_available():
        return this_card(torch.device("cuda", 0))
    unseen = unseen_gpu()
    if unseen:
        raise InputError(
            f"this machine has a GPU ({unseen}) that torch can't see: {_why()}; or train on the CPU with --gpu cpu"
        )
    return None


def backend_here() -> str:
    """`train.backend` for this machine's GPU: kernel where the extension was built for CUDA, else reference."""
    try:
        load_ops("kernel")
    except KernelNotBuilt:
        return "reference"
    has_cuda = importlib.import_module("refimpl.ops._kernels").cuda_arches
    return "kernel" if has_cuda and torch.cuda.is_available() else "reference"


def unseen_gpu(driver: Path = DRIVER, devices: Path = DEVICES) -> str:
    """A GPU that the system has and that CUDA_VISIBLE_DEVICES does not hide; empty where there is none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return ""
    found = sorted(driver.iterdir()) if driver.is_dir() else []
    return str(next(iter([*found, *sorted(devices.glob("nvidia[0-9]*"))]), ""))


def _why() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for the CPU only; install one for CUDA (pytorch.org)"
    return f"torch is built for CUDA {torch.version.cuda}, and the driver may be older; `nvidia-smi` says"
