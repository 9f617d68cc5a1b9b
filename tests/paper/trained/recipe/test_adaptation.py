"""Steps until coherent: between milestones on a logarithmic scale, and never less than one."""

import pytest

from refimpl.paper.trained.recipe.adaptation import steps_until


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ({0: 0.5, 10: 0.4}, 1),
        ({0: 4.0, 10: 1.0, 20: 0.25}, 10),
        ({0: 8.0, 10: 4.0, 30: 0.25}, 20),
        ({0: 4.0, 10: 3.0, 20: 2.0}, 20),
        ({0: 2.0, 10: 0.5, 20: 4.0}, 5),
        ({0: 1.0 + 1e-12, 10: 0.5}, 1),
    ],
)
def test_steps_until_the_loss_is_at_most_1(losses, steps):
    assert steps_until(losses, 1.0) == pytest.approx(steps)
