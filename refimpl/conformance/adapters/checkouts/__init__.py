"""Adapters of projects that are read from local checkouts, one function at a time."""
