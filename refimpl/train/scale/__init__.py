"""What a run of many nodes would send and how fast it could be: estimates, for plans of hundreds of GPUs (N §4)."""
