"""The report of any run: finished, running or stopped, of a UNet or of a decoder."""
