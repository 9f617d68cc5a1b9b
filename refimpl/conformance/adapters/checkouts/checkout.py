"""Single functions of a project that is read from a local checkout, at one commit.

REFIMPL_PEERS names the folder of the checkouts, each under its repository's name. Nothing of a peer is installed or
imported as a whole: the source file is parsed, the functions and classes asked for are compiled at their own lines,
and run with the names that the adapter gives them in place of the file's imports.
"""

import ast
import os
import subprocess
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from refimpl.errors import InputError

FOLDER = "REFIMPL_PEERS"


class Checkout:
    """A repository's files at the commit that an adapter was written for.

    repository  owner/name on GitHub        commit  its 40 digits
    Raises InputError when the folder or the checkout is absent, or is at another commit. Without git, the commit is
    not looked at, and `version` says so.
    """

    def __init__(self, repository: str, commit: str) -> None:
        self.repository, self.commit = repository, commit
        name = repository.partition("/")[2]
        folder = os.environ.get(FOLDER)
        where = f"git clone https://github.com/{repository} && git -C {name} checkout {commit}"
        if not folder:
            raise InputError(
                f"{name} is read from a checkout: set {FOLDER} to a folder in which you ran {where}"
            )
        self.path = Path(folder) / name
        if not self.path.is_dir():
            raise InputError(f"{self.path} is absent: in {folder}, {where}")
        found = _head(self.path)
        if found and found != commit:
            raise InputError(
                f"{self.path} is at {found}; its adapter was written for {commit}: check that out"
            )
        self.version = commit[:12] + ("" if found else " (not verified: no git)")
        self._lines: dict[tuple[str, str], int] = {}

    def take(self, file: str, *names: str, **given: Any) -> SimpleNamespace:
        """The functions, classes and constants of a file, by name, with the globals `given`.

        names  of the module, or Class.method, which is taken as a function without its decorators
        Raises InputError, naming it, for one that is not there.
        """
        path = self.path / file
        try:
            tree = _parsed(path)
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        wanted: list[ast.stmt] = []
        missing = set(names)
        for node in [*tree.body, *_methods(tree, names)]:
            own = _names(node) & set(names)
            if own:
                wanted.append(node)
                missing -= own
                self._lines |= {(file, name): node.lineno for name in own}
        if missing:
            raise InputError(f"{path} has no {', '.join(sorted(missing))}: another commit?")
        scope: dict[str, Any] = {"__name__": f"peer.{path.stem}", **given}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their source, which is theirs to mend
            exec(compile(ast.Module(wanted, []), str(path), "exec"), scope)  # the user's own checkout
        return SimpleNamespace(**{name.rpartition(".")[2]: scope[name] for name in names})

    def link(self, file: str, name: str, method: str = "") -> str:
        """Address on GitHub of a function or class that was taken, or of a method of that class."""
        line = self._lines[file, name]
        if method:
            tree = _parsed(self.path / file)
            inside = next(node for node in tree.body if name in _names(node))
            line = next(
                n.lineno for n in ast.walk(inside) if isinstance(n, ast.FunctionDef) and n.name == method
            )
        return f"https://github.com/{self.repository}/blob/{self.commit}/{file}#L{line}"


def _parsed(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _methods(tree: ast.Module, names: tuple[str, ...]) -> list[ast.stmt]:
    """The methods asked for as Class.method, each renamed so and without decorators."""
    found: list[ast.stmt] = []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and f"{node.name}.{method.name}" in names:
                method.name, method.decorator_list = f"{node.name}.{method.name}", []
                found.append(method)
    return found


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


def _head(path: Path) -> str:
    """The commit that is checked out; empty without git."""
    if not (path / ".git").exists():
        return ""
    command = ["git", "-C", str(path), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
