"""What a run meets between its first step and its last: kills, signals, bad numbers, full disks, other world sizes.

`nox -s faults` runs all of it; the normal run has a short form of each test. What was tried and lost is counted.
"""
