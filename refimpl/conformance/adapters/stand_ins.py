"""Loading modules of other packages without what they import for parts that are not called.

A stand-in that is used after all raises AttributeError. Its module is taken away again after the import, so that
nobody who probes for the real one finds it.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from refimpl.errors import InputError
from refimpl.packages import install_line

K_DIFFUSION = {
    "torchvision": {},
    "torchvision.transforms": {"functional": ModuleType("functional")},
    "torchvision.transforms.functional": {},
    "torchdiffeq": {"odeint": None},
    "torchsde": {},
}


def k_diffusion(module: str) -> ModuleType:
    """k_diffusion.sampling, .external or .utils, without running the package's own __init__.

    Raises InputError when k-diffusion is not installed.
    """
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.origin is None:
            raise InputError(f"k-diffusion is not installed: {install_line('k-diffusion', '--no-deps')}")
        package = ModuleType("k_diffusion")
        package.__path__ = [str(Path(spec.origin).parent)]
        sys.modules["k_diffusion"] = package
    with stand_ins(K_DIFFUSION):
        return importlib.import_module(f"k_diffusion.{module}")


@contextmanager
def stand_ins(modules: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Within, importing one of the modules that is not installed gives an empty one with these attributes."""
    added = [name for name in modules if name not in sys.modules and not _installed(name)]
    for name in added:
        module = ModuleType(name)
        module.__path__ = []
        for attribute, value in modules[name].items():
            setattr(module, attribute, value)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in added:  # other libraries probe for torchvision and must not find an empty one
            del sys.modules[name]


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False
