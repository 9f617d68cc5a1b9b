"""The declared mutants fit the tree as it is: what `nox -s mutants` would stumble over fails here, in a second."""

import ast
from collections import Counter
from functools import cache

import pytest

from tests.meta.declared import ROOT, Mutant, read_mutants

MUTANTS = read_mutants()


@cache
def functions_of(file: str) -> frozenset[str]:
    """The test functions of a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def rooms() -> set[str]:
    """Folders of the package in which more stands than an __init__ or a __main__."""
    files = (path for path in (ROOT / "refimpl").rglob("*.py") if not path.name.startswith("__"))
    return {path.parent.relative_to(ROOT).as_posix() for path in files} - {"refimpl"}


def test_ids_are_unique() -> None:
    assert [name for name, count in Counter(mutant.id for mutant in MUTANTS).items() if count > 1] == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_it_can_be_applied_and_its_tests_are_there(mutant: Mutant) -> None:
    content = (ROOT / mutant.file).read_text(encoding="utf-8")
    changed = mutant.applied_to(content)
    assert changed != content
    if mutant.file.endswith(".py"):
        ast.parse(changed)
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), test
        assert not name or name.partition("[")[0] in functions_of(file), test
    assert all((ROOT / source).is_file() for source in mutant.rebuild)


def test_every_room_and_every_kind_of_kernel_source_has_a_mutant() -> None:
    with_mutants = {mutant.file.rpartition("/")[0] for mutant in MUTANTS}
    assert rooms() - with_mutants == set()
    assert {mutant.file for mutant in MUTANTS} >= {
        path.relative_to(ROOT).as_posix() for kind in ("*.cpp", "*.cu") for path in (ROOT / "csrc").glob(kind)
        if path.name != "bind_cuda.cpp"  # compiled with CUDA alone
    } | {"csrc/formulas.h"}  # fmt: skip


def test_a_text_that_stands_twice_needs_its_number() -> None:
    mutant = Mutant("both", "a.py", "x", "y", ("tests",))
    with pytest.raises(ValueError, match="stands 2 times"):
        mutant.applied_to("x + x")
    with pytest.raises(ValueError, match="stands 0 times"):
        mutant.applied_to("z")
    assert Mutant("second", "a.py", "x", "y", ("tests",), occurrence=2).applied_to("x + x") == "x + y"
    with pytest.raises(ValueError, match="stands 1 times"):
        Mutant("second", "a.py", "x", "y", ("tests",), occurrence=2).applied_to("x")
