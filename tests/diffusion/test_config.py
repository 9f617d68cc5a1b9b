"""Settings of the diffusion process (N §2)."""

import pytest
import torch

from refimpl.diffusion.config import DiffusionConfig
from refimpl.diffusion.min_snr import min_snr_weight
from refimpl.diffusion.v_prediction import v_from_eps, v_from_x0
from refimpl.errors import InputError


@pytest.mark.parametrize(("parameterisation", "to_v"), [("eps", v_from_eps), ("x0", v_from_x0)])
def test_without_a_policy_errors_weigh_alike_in_the_units_of_the_parameterisation(parameterisation, to_v):
    """weight · (error in v)² is the squared error of what the network outputs, at every timestep."""
    config = DiffusionConfig(parameterisation, zero_terminal_snr=False, loss_weight="none")
    schedule = config.schedule()
    alpha, sigma = schedule.alpha, schedule.sigma
    x_t, output = torch.zeros(1000, 1, dtype=torch.float64), torch.ones(1000, 1, dtype=torch.float64)
    v_error = to_v(x_t, output, alpha, sigma) - to_v(x_t, 2 * output, alpha, sigma)
    torch.testing.assert_close(config.loss_weights() * v_error[:, 0] ** 2, torch.ones_like(alpha))


def test_v_without_a_policy_weighs_one_everywhere():
    assert torch.equal(DiffusionConfig(loss_weight="none").loss_weights(), torch.ones(1000).double())


@pytest.mark.parametrize("policy", ["paper", "floor", "snr_plus_one"])
def test_the_policies_are_those_of_min_snr_on_the_schedule_trained(policy):
    floor = 0.1 if policy == "floor" else 0.0
    config = DiffusionConfig(loss_weight=policy, weight_floor=floor, min_snr_gamma=3.0)
    assert config.schedule().is_zero_terminal
    assert torch.equal(
        config.loss_weights(), min_snr_weight(config.schedule().snr, 3.0, policy=policy, floor=floor)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameterisation": "eps"}, "'eps' cannot be used with a zero-terminal-SNR schedule"),
        ({"first_timestep": 5, "last_timestep": 4}, "first_timestep 5 and last_timestep 4"),
        ({"last_timestep": 1000}, "last_timestep 1000"),
        ({"first_timestep": -1}, "first_timestep -1"),
        ({"loss_weight": "min"}, "diffusion.loss_weight"),
        ({"min_snr_gamma": 0.0}, "diffusion.min_snr_gamma"),
        ({"offset_noise": -0.1}, "diffusion.offset_noise"),
        ({"weight_floor": -0.1}, "diffusion.weight_floor"),
        (
            {"weight_floor": 0.1},
            "weight_floor 0.1 is read only with diffusion.loss_weight 'floor', not 'paper'",
        ),
        (
            {"weight_floor": 0.1, "loss_weight": "none"},
            "'floor', not 'none': set that, or leave the floor out",
        ),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        DiffusionConfig(**settings)
