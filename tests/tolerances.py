"""Every tolerance of the test suite, each with the reason for its size."""

FLOAT64_ROUNDING = 1e-12  # a few hundred float64 operations (eps 2.2e-16) on values of order one
ANTIALIASED_AREA = 0.12  # share of pixels on the edge of a drawn shape at 64 px: perimeter over area
