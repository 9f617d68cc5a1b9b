"""Commands for the figures and claims of the reports."""
