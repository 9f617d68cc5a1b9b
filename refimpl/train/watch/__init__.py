"""A run seen from outside its steps: what is measured and where it is written, signals, torchrun's restarts."""
