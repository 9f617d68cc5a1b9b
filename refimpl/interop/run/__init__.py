"""Run folders: what training leaves, read back as a model."""
