"""What comes out of a run: known deviations, tables, and the published page."""
