"""Autoencoders: training from scratch, decoder finetuning, and the statistics of their latents."""
