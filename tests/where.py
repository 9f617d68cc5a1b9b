"""Where the tests of a file are: beside a test of its name, or as tests/where.toml says.

python -m tests.where refimpl/data/batches.py ...    prints their paths, as pytest takes them
"""

import ast
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "refimpl", ROOT / "tests"
TABLE: dict[str, list[str] | str] = tomllib.loads((TESTS / "where.toml").read_text(encoding="utf-8"))


def holds_code(path: Path) -> bool:
    """Whether a file has more in it than a docstring, imports and names such as `__all__`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        targets = node.targets if isinstance(node, ast.Assign) else []
        is_name = bool(targets) and all(isinstance(t, ast.Name) and t.id.startswith("__") for t in targets)
        if not (is_docstring or is_name or isinstance(node, ast.Import | ast.ImportFrom)):
            return True
    return False


def test_of_its_name(path: Path) -> Path:
    """tests/a/test_b.py for refimpl/a/b.py, whether it exists or not."""
    return TESTS / path.relative_to(PACKAGE).parent / f"test_{path.stem}.py"


def tests_of(path: Path) -> list[Path]:
    """The test files of a file of the package, that of its name first; none where only a nox session runs it."""
    named = test_of_its_name(path)
    listed = TABLE.get(path.relative_to(PACKAGE).as_posix(), [])
    further = [TESTS / name for name in listed] if isinstance(listed, list) else []
    return [named, *further] if named.exists() else further


def main(arguments: list[str]) -> None:
    """Prints the test files of the files named; ends with an error for one that has none."""
    found: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument).resolve()
        if not path.is_file() or PACKAGE not in path.parents:
            sys.exit(f"error: {argument} is no file of {PACKAGE}")
        tests = tests_of(path)
        if not tests:
            sys.exit(f"error: no test runs {argument}: see tests/where.toml")
        found |= dict.fromkeys(tests)
    print(*(path.relative_to(ROOT) for path in found))


if __name__ == "__main__":
    main(sys.argv[1:])
