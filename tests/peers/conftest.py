"""These tests run where they are asked for: `nox -s peers -- DIR`, or `pytest -m peers` with REFIMPL_PEERS set."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects every test of this folder unless -m names the marker."""
    if "peers" in (config.getoption("-m") or ""):
        return
    mine = [item for item in items if item.get_closest_marker("peers")]
    if mine:
        config.hook.pytest_deselected(items=mine)
        items[:] = [item for item in items if item not in mine]
