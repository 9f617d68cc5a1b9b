"""Prompts → context and pooled states (S Tab. 1, N §4.2)."""
