"""Other people's implementations that the tests compare with, loaded as the conformance suite loads them."""

from refimpl.conformance.adapters.stand_ins import k_diffusion

__all__ = ["k_diffusion"]
