"""Autoencoders: trained from scratch, their decoders finetuned, the statistics of their latents."""
