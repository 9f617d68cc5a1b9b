"""Readers for the five on-disk layouts of a data set."""
