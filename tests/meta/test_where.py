"""Every file of the package says where its tests are, and says the truth as far as imports show it."""

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.where import PACKAGE, ROOT, TABLE, TESTS, holds_code, main, test_of_its_name, tests_of

test_of_its_name.__test__ = False  # pytest takes it for a test by its name
tests_of.__test__ = False

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if holds_code(path)]
SESSIONS = re.findall(r"^@nox\.session\ndef (\w+)", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.M)


@functools.cache
def mentioned(path: Path) -> frozenset[Path]:
    """Files of the package and the tests that a file imports, anywhere in it, or names as a module in a string."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"refimpl(\.\w+)+", str(node.value)):
            names.add(str(node.value))
    files = set()
    for name in names:
        base = ROOT.joinpath(*name.split("."))
        files |= {base.with_suffix(".py"), base / "__init__.py", base / "__main__.py"}
    fixtures = {path.parent / "conftest.py"} if TESTS in path.parents else set()
    return frozenset(file for file in files | fixtures if file.is_file())


@functools.cache
def reached(path: Path) -> frozenset[Path]:
    """Everything that a file imports, and what that imports."""
    found, waiting = set(), [path]
    while waiting:
        new = mentioned(waiting.pop()) - found
        found |= new
        waiting += new
    return frozenset(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_has_a_test_of_its_name_or_a_line(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    where = test_of_its_name(path).relative_to(ROOT)
    assert test_of_its_name(path).exists() or name in TABLE, (
        f"write {where}, or add a line to tests/where.toml that says which tests run it"
    )


@pytest.mark.parametrize("name", TABLE)
def test_every_line_is_true(name: str) -> None:
    path, tests = PACKAGE / name, TABLE[name]
    assert path.is_file(), f"{name} is no more: drop or rename its line in tests/where.toml"
    if isinstance(tests, str):
        assert tests.removeprefix("nox -s ") in SESSIONS
        return
    assert tests
    for test in tests:
        assert (TESTS / test).is_file(), f"tests/{test} is no more"
        assert Path(test).name.startswith("test_")
        assert path in reached(TESTS / test), f"tests/{test} does not import {name}, nor does what it imports"


def test_lines_are_sorted() -> None:
    assert list(TABLE) == sorted(TABLE)


def test_the_command_prints_what_pytest_takes(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(PACKAGE / "diffusion" / "schedule.py"), str(PACKAGE / "data" / "batches.py")])
    printed = capsys.readouterr().out.split()
    assert printed[:2] == ["tests/diffusion/test_schedule.py", "tests/data/test_plan.py"]
    with pytest.raises(SystemExit, match=r"no file of"):
        main(["setup.py"])
    with pytest.raises(SystemExit, match=r"no test runs"):
        main([str(PACKAGE / "report" / "demo_content.py")])
