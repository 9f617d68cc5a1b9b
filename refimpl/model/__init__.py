"""The UNet (S §2.1, Tab. 1)."""
