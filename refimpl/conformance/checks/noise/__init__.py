"""Checks of the schedule, the noised latent, its target, the loss weight and keyed noise."""
