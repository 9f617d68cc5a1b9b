"""Other people's implementations that the tests compare with, loaded without what they do not need.

k-diffusion imports torchvision, CLIP and more for parts that no test touches. Its modules are loaded here
with empty stand-ins for such imports; a stand-in that is used after all raises AttributeError.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

STAND_INS = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchdiffeq",
    "torchsde",
)


def k_diffusion(module: str) -> ModuleType:
    """k_diffusion.sampling, .external or .utils, without running the package's own __init__.

    Raises ModuleNotFoundError when k-diffusion is not installed (`pip install --no-deps k-diffusion`).
    """
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("k_diffusion: pip install --no-deps k-diffusion")
        package = ModuleType("k_diffusion")
        package.__path__ = [str(Path(spec.origin).parent)]
        sys.modules["k_diffusion"] = package
    added = [name for name in STAND_INS if name not in sys.modules and not _installed(name)]
    for name in added:
        sys.modules[name] = _stand_in(name)
    try:
        return importlib.import_module(f"k_diffusion.{module}")
    finally:
        for name in added:  # other libraries probe for torchvision and must not find an empty one
            del sys.modules[name]


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _stand_in(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = []
    # the two names that k-diffusion takes with "from ... import ..."
    if name == "torchvision.transforms":
        module.functional = ModuleType("functional")  # type: ignore[attr-defined]
    if name == "torchdiffeq":
        module.odeint = None  # type: ignore[attr-defined]
    return module
