"""Images → checkpoint (N §4, S §2.5)."""
