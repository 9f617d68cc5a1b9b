"""Adapters of this project and of others; none is imported unless it is asked for."""
