"""Five layouts of a data set on disk."""
