"""Stand-ins for packages that another project imports and that what is tested of it does not use.

torchvision and torchaudio need a build for the very torch that is installed, which there is not for every CPU build.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any


class _Anything:
    """Stands in for any class, function or constant: it can be called, subclassed and asked for attributes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if name == "__version__":
            return "0.0"
        return (
            type(name, (_Anything,), {}) if name[0].isupper() else _Anything()
        )  # else a function or a module


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in_for(*names: str) -> None:
    """Makes packages importable, with anything in them, where they are not installed.

    transformers first finds out, once and for all, what it has: it must not take a stand-in for torchvision.
    """
    import transformers.utils

    transformers.utils.is_torchvision_available()
    transformers.utils.is_torchaudio_available()
    missing = [name for name in names if name not in sys.modules and importlib.util.find_spec(name) is None]
    sys.meta_path.append(_Finder(missing))
