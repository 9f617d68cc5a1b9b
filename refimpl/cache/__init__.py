"""Latents and text states, encoded once and read in every epoch."""
