"""Images on disk → batches of one shape (N §4.1, §4.3; S §2.2–2.3)."""
