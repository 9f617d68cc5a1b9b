"""States that the ranks of a job hold together, each a part: how they are written and read."""
