"""Benchmarks run once, untimed, unless they are asked for; without pytest-benchmark they are skipped."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Switches pytest-benchmark's timing off, unless --benchmark-enable or --benchmark-only is given."""
    if not config.pluginmanager.hasplugin("benchmark"):
        return
    if not (config.option.benchmark_enable or config.option.benchmark_only):
        config.option.benchmark_disable = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips, with the reason, the tests that need pytest-benchmark where it is absent."""
    if config.pluginmanager.hasplugin("benchmark"):
        return
    absent = pytest.mark.skip(reason="pytest-benchmark is not installed: pip install pytest-benchmark")
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(absent)
