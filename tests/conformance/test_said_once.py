"""What any trainer must do is stated once, in the checks; the tests of each part hold this project to them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from refimpl.conformance.evaluate import run_check
from tests.conformance.planted import PLANTED
from tests.conforming import CHECKS, REFERENCE, conforms

TESTS = Path(__file__).parents[1]
PARTS = {
    "diffusion": ("schedule", "noised", "target", "weight", "keyed", "scalings", "sigma_to_t"),
    "sample": ("first_step", "grid", "guide"),
    "data": ("buckets", "assign", "epoch", "resume", "crop", "size_ints"),
    "text": ("chunks", "pool", "size_ints"),
    "interop": ("markers",),
}
"""Folders of tests, and the groups of checks that are about what they test."""
REFUSED = {"grid.leading_start": "leading spacing skips pure noise, so a zero-SNR schedule refuses it"}
"""Checks that no test names, because this project does not offer what they are about, and why."""


def names_in(call: ast.Call, listed: dict[str, list[str]]) -> Iterator[str]:
    """The checks that a call of `conforms` names: a literal, or an f-string of a group and a test's parameter."""
    argument = call.args[0]
    if isinstance(argument, ast.Constant):
        yield str(argument.value)
        return
    assert isinstance(argument, ast.JoinedStr), ast.unparse(call)
    written = [str(part.value) if isinstance(part, ast.Constant) else "" for part in argument.values]
    (slot,) = (part for part in argument.values if isinstance(part, ast.FormattedValue))
    for name in listed[ast.unparse(slot.value)]:
        yield name.join(written)


def parameters_of(test: ast.FunctionDef, constants: dict[str, list[str]]) -> dict[str, list[str]]:
    """The strings that `parametrize` gives to each parameter of a test."""
    found = {}
    for mark in test.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.parametrize":
            name, values = mark.args[0], mark.args[1]
            given = constants.get(ast.unparse(values)) or strings_in(values)
            found[ast.literal_eval(name) if isinstance(name, ast.Constant) else ""] = given
    return found


def strings_in(node: ast.expr) -> list[str]:
    return [
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]


@cache
def named_by_tests_of(part: str) -> frozenset[str]:
    """Every check that a test of that folder calls."""
    found: set[str] = set()
    for path in sorted((TESTS / part).rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            ast.unparse(node.targets[0]): strings_in(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
        }
        for test in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            calls = [node for node in ast.walk(test) if isinstance(node, ast.Call)]
            for call in calls:
                if isinstance(call.func, ast.Name) and call.func.id == "conforms":
                    found.update(names_in(call, parameters_of(test, constants)))
    return frozenset(found)


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in REFUSED])
def test_a_test_of_its_part_calls_the_check(name: str) -> None:
    group = CHECKS[name].group
    parts = [part for part, groups in PARTS.items() if group in groups]
    assert any(name in named_by_tests_of(part) for part in parts), (
        f"no test in {' or '.join(f'tests/{part}' for part in parts)} calls conforms({name!r})"
    )


@pytest.mark.parametrize("part", PARTS)
def test_what_tests_name_are_checks_of_their_part(part: str) -> None:
    named = named_by_tests_of(part)
    assert named <= set(CHECKS)
    assert {CHECKS[name].group for name in named} <= set(PARTS[part])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_not_offered(name: str) -> None:
    assert run_check(CHECKS[name], REFERENCE).status == "not offered"


def test_calling_a_check_fails_where_it_deviates_where_it_is_not_within_and_where_it_is_not_offered() -> None:
    conforms("schedule.zero_snr_end")
    for call in (
        lambda: conforms("schedule.zero_snr_end", on=PLANTED["schedule.zero_snr_end"]),
        lambda: conforms("assign.mean_error", within=0.01),
        lambda: conforms("grid.leading_start"),
    ):
        with pytest.raises(AssertionError):
            call()
