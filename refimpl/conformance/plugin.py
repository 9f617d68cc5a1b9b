"""pytest --pyargs refimpl.conformance --implementation package.module:Adapter: each check as a test.

Loaded by every pytest where this package is installed, so it imports nothing until it is asked for.
"""

from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The suite's options."""
    group = parser.getgroup("refimpl.conformance", "conformance of an implementation of SDXL training")
    group.addoption(
        "--implementation",
        metavar="ADAPTER",
        default="",
        help="package.module:Adapter, or the name of a shipped one",
    )
    group.addoption(
        "--known",
        metavar="FILE",
        default="",
        help="TOML of known deviations, each of which must occur as it says",
    )
    group.addoption("--examples", type=int, default=50, help="arguments drawn for each check that draws")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each check."""
    if "conformance_check" in metafunc.fixturenames:
        from refimpl.conformance.registry import all_checks

        metafunc.parametrize("conformance_check", list(all_checks()))


@pytest.fixture(scope="session")
def conformance_run(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The process that evaluates the checks, and the known deviations."""
    from refimpl.conformance.evaluate import Effort
    from refimpl.conformance.results.known import known_deviations
    from refimpl.conformance.worker import Worker
    from refimpl.errors import InputError

    option = request.config.getoption
    name = str(option("--implementation"))
    if not name:
        pytest.fail(
            "give --implementation package.module:Adapter (see refimpl.conformance.Adapter)", pytrace=False
        )
    try:
        known = known_deviations(name, str(option("--known")))
        with Worker(name, Effort(examples=int(str(option("--examples"))))) as worker:
            yield worker, known
    except InputError as error:
        pytest.fail(str(error), pytrace=False)
