"""Checks of buckets, assignment, epochs and crops."""
