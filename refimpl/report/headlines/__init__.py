"""What matters most about a run, a data set or the demo: sentences with a severity, and what to do next."""
