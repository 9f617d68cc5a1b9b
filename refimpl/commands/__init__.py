"""The command line: one file per command, grouped by what a person wants."""
