"""The local page for runs and data: a small server on 127.0.0.1 that reads run folders and an index."""
