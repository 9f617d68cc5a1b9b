"""Around a file of settings: the paths that it names, and the files of other trainers."""
