"""What watches over a run from outside its steps: signals, and torchrun's restarts."""
