"""`refimpl init`: the questions, the file that it writes, and what it says."""
