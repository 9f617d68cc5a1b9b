"""Hypothesis profile: reproducible examples, no deadline (the machines' clocks are noisy). One thread per test."""

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "refimpl",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("refimpl")

# Tests compute on small tensors, where a second thread only waits; on a busy machine it waits ten times as long.
torch.set_num_threads(1)
