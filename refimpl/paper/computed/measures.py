"""Every computed measure by its name, as the claims table calls them."""

from collections.abc import Callable

from refimpl.paper.computed.canvas_noise import level_of_unit_snr, mean_noise, mean_recovered, mean_snr
from refimpl.paper.computed.channels import channel_scaling, convergence
from refimpl.paper.computed.cropping import cropping
from refimpl.paper.computed.doubling import channel_redundancy, doubling_exponents
from refimpl.paper.computed.first_step import first_step_limit, laplace_spread
from refimpl.paper.computed.quantity import Quantity
from refimpl.paper.computed.triviality import triviality

MEASURES: dict[str, Callable[[], list[Quantity]]] = {
    "canvas noise": lambda: [*mean_noise(), *mean_snr()],
    "share told": lambda: [*mean_recovered(), level_of_unit_snr()],
    "doubling": doubling_exponents,
    "channel redundancy": channel_redundancy,
    "triviality": triviality,
    "first step": first_step_limit,
    "laplace": laplace_spread,
    "cropping": cropping,
    "channel scaling": channel_scaling,
    "convergence": convergence,
}
