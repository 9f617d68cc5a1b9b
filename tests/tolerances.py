"""Every tolerance of the test suite, each with the reason for its size."""

FLOAT64_ROUNDING = 1e-12  # a few hundred float64 operations (eps 2.2e-16) on values of order one
ANTIALIASED_AREA = 0.12  # share of pixels on the edge of a drawn shape at 64 px: perimeter over area

# --- diffusion ---
FLOAT64_NEAR_ZERO_SNR = 1e-10  # √abar − √abar₉₉₉ cancels 3 digits before t = 999, on top of FLOAT64_ROUNDING
FLOAT32_ROUNDING = 2e-6  # some tens of float32 operations (eps 1.2e-7) on values of order one
FLOAT32_BETAS = 1e-5  # what abar loses when it goes through float32 betas and their cumulative product
FLOAT32_LOG_SIGMA = (
    1e-4  # a timestep from float32 log sigmas: spacing 3e-3 at t = 500, rounding 3e-7, times slope
)
STANDARD_ERRORS = 5  # of a statistic; draws are keyed, so what passes once passes for ever
KS_CRITICAL = 1.95  # sqrt(n)·D of a Kolmogorov–Smirnov test at p = 0.001
