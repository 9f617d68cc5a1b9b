"""The extension module that setup.py builds from csrc/ (PYBIND11_MODULE in bind.cpp)."""

from types import ModuleType

torch_version: str
cuda_arches: str
formulas: ModuleType

def isa() -> str: ...
def use_isa(name: str) -> None: ...
