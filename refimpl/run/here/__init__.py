"""What this machine has of what a run's settings name."""
