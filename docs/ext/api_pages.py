"""The API reference: a page for each folder of the package, with its modules in the order of their names."""

from pathlib import Path

import refimpl

PACKAGE = Path(refimpl.__file__).parent
# Modules that act when they are imported, or that need what a reader need not have.
LEFT_OUT = ("__main__", "refimpl.conformance.test_conformance")


def api_pages() -> dict[str, str]:
    """The pages by file name, as reStructuredText."""
    folders = [PACKAGE, *sorted(path.parent for path in PACKAGE.rglob("*/__init__.py"))]
    return {f"{_name(folder)}.rst": _page(folder) for folder in folders}


def public_modules(folder: Path) -> list[str]:
    """The modules directly in a folder of the package, by their full names."""
    names = [f"{_name(folder)}.{path.stem}" for path in sorted(folder.glob("*.py"))]
    return [name for name in names if name not in LEFT_OUT and not name.rpartition(".")[2].startswith("_")]


def _name(folder: Path) -> str:
    return ".".join(folder.relative_to(PACKAGE.parent).parts)


def _page(folder: Path) -> str:
    name = _name(folder)
    lines = [*_heading(name, "="), *_automodule(name)]
    for module in public_modules(folder):
        lines += [*_heading(module.removeprefix(f"{name}."), "-"), *_automodule(module)]
    within = sorted(_name(path.parent) for path in folder.glob("*/__init__.py"))
    if within:
        lines += [".. toctree::", "   :maxdepth: 1", "   :caption: Folders in it", ""]
        lines += [f"   {inner}" for inner in within]
    return "\n".join(lines) + "\n"


def _heading(text: str, rule: str) -> list[str]:
    escaped = text.replace("_", "\\_")
    return [escaped, rule * len(escaped), ""]


def _automodule(name: str) -> list[str]:
    return [f".. automodule:: {name}", "   :members:", ""]
