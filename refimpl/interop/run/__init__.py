"""Run folders: the results of training, read back as a model."""
