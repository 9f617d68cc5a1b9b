"""Images ↔ standardised latents (S §2.4, N App. B)."""
