"""Commands over files of other programs: inspect, convert, export, merge."""
