"""Commands on files of other programs: inspect, convert, export, merge."""
