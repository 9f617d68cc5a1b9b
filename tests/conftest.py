"""Hypothesis profile: reproducible examples, no deadline (the machines' clocks are noisy)."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "refimpl",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("refimpl")
