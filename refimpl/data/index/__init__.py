"""A data set as one table, from any of five layouts."""
