"""The claims of the reports, computed and measured."""
