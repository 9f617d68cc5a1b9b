"""Claims of N, S and R that pure computation on bundled photographs answers, with bootstrap intervals."""
