"""What is measured of a run while it trains, and the files and services that it is written to."""
