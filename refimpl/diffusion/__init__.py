"""The diffusion process as pure functions (N §2, App. A)."""
