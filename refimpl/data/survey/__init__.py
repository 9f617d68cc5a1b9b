"""How a data set would be trained on, reported before any training."""
