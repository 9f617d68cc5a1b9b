"""The checks: a folder for each stage, a file for each method of the adapter, a function for each statement."""
