"""The commands that write a page about what is there, and the pages of others."""
