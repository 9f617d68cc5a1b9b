"""Every Hypothesis strategy of the test suite, by the concept it draws."""
