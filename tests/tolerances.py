"""Every tolerance of the test suite, each with the reason for its size."""

FLOAT64_ROUNDING = 1e-12  # a few hundred float64 operations (eps 2.2e-16) on values of order one
ANTIALIASED_AREA = 0.12  # share of pixels on the edge of a drawn shape at 64 px: perimeter over area

# --- diffusion ---
FLOAT64_NEAR_ZERO_SNR = 1e-10  # √abar − √abar₉₉₉ cancels 3 digits before t = 999, on top of FLOAT64_ROUNDING
FLOAT32_ROUNDING = 2e-6  # some tens of float32 operations (eps 1.2e-7) on values of order one
FLOAT32_NEAR_PURE_NOISE = 4.5e-4  # FLOAT32_ROUNDING over alpha² = 1/215 or sigma² at the published ends
FLOAT32_BETAS = 1e-5  # what abar loses when it goes through float32 betas and their cumulative product
FLOAT32_LOG_SIGMA = 1e-4  # a timestep from float32 log sigmas: rounding 3e-7 over their spacing of 3e-3
KEYED_NORMAL_ULPS = 1  # float32 steps: libm, torch and CUDA may differ in the last bit of a float64 logarithm
STANDARD_ERRORS = 5  # of a statistic; draws are keyed, so what passes once passes for ever
KS_CRITICAL = 1.95  # sqrt(n)·D of a Kolmogorov–Smirnov test at p = 0.001
BINARY_DECIMAL_AT_1E7 = 2e-8  # float64 holds 10000000.1 to 2e-9, which is 2e-8 of a deviation of 0.1

# --- latents and text ---
WELFORD_RELATIVE = 1e-12  # any partition against one pass; what 1e4 float64 additions may cost
NUMACC_EXACT = 1e-14  # a two-pass sum over 1001 float64 deviations that are themselves exact
STORED_DECIMAL = 0.5  # units in the last place by which a decimal differs from the float64 that stores it
FLOAT32_STEPS = 4  # roundings of one or two float32 operations, in units of the dtype's eps
TRANSFORMER_FLOAT32 = 1e-5  # two layers at 64 channels, other batch shape: relative to states of order one
SINUSOID_FLOAT32 = 3e-4  # angle t·f near 3000 carries float32's 6e-8 relative error of t·f, so 2e-4 absolute
SEPARATE_COLOURS = 0.35  # rms between pooled states of two colours, of rms 1; unrelated prompts are √2 apart
UNIT_SCALE = (0.5, 2.5)  # range in which the rms of a state counts as of order one
BICUBIC_LEVELS = (
    1.5  # of 255: Pillow rounds to whole levels after each of its two passes, half a level each and the
)
# weights of the second pass, which add up to 1.25 in absolute value, on the first

# --- sample ---
PRINTED_SIGMA = 0.05  # N Fig. 6 and 7 print sigma_max as 14.6 and 29: to the last printed digit of 14.6
BFLOAT16_ROUNDING = 2.0**-8  # relative error of one rounding to bfloat16 (8 significant bits)
SECOND_ORDER_GAIN = 3.3  # error ratio when steps double; 4 in the limit, less while the ends weigh in
FIRST_ORDER_GAIN = 1.8  # error ratio when steps double; 2 in the limit
PRINTED_PERCENT = 0.005  # half of the last place of a percentage printed with two decimals
PINNED_FLOW = 1e-9  # a closed form, pinned to ten digits
PINNED_SAMPLER = (
    1e-6  # some tens of float64 steps, pinned to seven digits; Bayes' rule summed over 24,001 values
)
MIXTURE_MONTE_CARLO = 0.006  # three standard errors of a variance of order one from 2^14 keyed samples
MEASURED_ORDER = 0.02  # of the exponent between 160 and 320 steps, against its limit for many
BENT_DENSITY = 0.05  # of a share of a weight that bends within a timestep, where only its ends are known
SAME_END = (
    0.005  # of a share of order one: a start from 20000 instead of ∞, or a value printed with three decimals
)
BLOCK_CORRELATION = 0.25  # 3.5 standard errors of a correlation of 3 · 64 independent values, printed to 0.01

# --- networks ---
NETWORK_FLOAT32 = 1e-5  # largest error over largest value, after some hundred float32 layers in another order
NETWORK_FLOAT64 = 1e-12  # the same in float64
BFLOAT16_LATENT = 0.05  # latents of order one after some forty layers in bfloat16 (eps 2^-8), random weights
TWO_LEVELS_LATENT = 0.05  # latents of pictures that differ by up to 2 of 255 levels, random weights
BFLOAT16_LOSS = 0.02  # relative: latents rounded to bfloat16 (2^-9 each) over four steps of a small network
NETWORK_BFLOAT16_FACTOR = 2.0  # our bfloat16 error over the oracle's own: other rounding, not another formula
ATTENTION_ROUNDINGS = (
    1  # of the terms that a kernel adds, beside EAGER_ERRORS: it keeps p, ΔP and the output rounded
)
LORA_ROUNDINGS = 3  # in bfloat16: the layer's output, its update, their sum
LORA_AUTOCAST_ROUNDINGS = 8  # the same, and the factors and results of the update's two maps

# --- decoder finetuning ---
DECODER_STEP_SHARE = (
    0.01  # of a few steps' length: AdamW makes a whole step of a gradient that is mere rounding
)
DECODER_LOSS = 1e-4  # relative, float32: the loss after weights that differ by that much

# --- data ---
LOG_ASPECT_ROUNDING = (
    2.0**-32
)  # plans add log aspects as whole multiples of this, each rounded by half of one
LANCZOS_BOX_LEVELS = (
    2  # of 255: Pillow takes the axes in the cheaper order and rounds to whole levels between
)
LANCZOS_LEVELS = (
    2  # of 255: torch's weights have 16 bits, Pillow's 22, and each of the two passes rounds to a level
)
JPEG_DECODER_LEVELS = 1  # of 255: two builds of libjpeg-turbo, whose vector code may round another way
LOSSY_LEVELS = 6  # of 255: flat colours through JPEG or AVIF at quality 95, which work in YCbCr of 8 bits
ICC_LEVELS = 3  # of 255: 8-bit curves and 16.16 matrices of a profile, and a JPEG at quality 100 before it
LAB_LEVELS = 2  # of 255: muted colours through Lab of 8 bits and back, rounded each way
CHANCE = 1e-3  # p-value of a chi-square test below which draws count as biased; all draws are keyed

# --- compiled operations ---
EAGER_ERRORS = 2.0  # a kernel may err twice as much as the eager reference in the same precision
KERNEL_ROUNDINGS = (
    8  # roundings of the terms that are added, on top: products, sums of sums, coefficients to float32
)
KEYED_NORMAL_KERNEL_ULPS = 4  # of the radius: float32 logarithm, root, sine and cosine of about one ulp each
ROUNDED_PRODUCTS = 2  # roundings of a·b + c·d where one product is fused into the sum
CENTRAL_DIFFERENCE = 1e-10  # float64 rounding of squares up to 400, over a step of 2^-9
LOGARITHM_ULPS = 3  # of ln u in float32: the conversion of the word, one polynomial, two sums
SIGMOID_ULPS = 3  # in float32: an exponential, a sum, a reciprocal, a product
NORMAL_CDF_ULPS = (
    3  # of Φ(b) in float32 for b ≥ 0: a reciprocal, two polynomials, their product, one difference
)
NORMAL_TAIL_ULPS = ((3.0, 9), (13.0, 68))  # of Φ(b) for b ≥ −x: e^(−x²/2) has the x²/2 roundings of x² on top
BACKEND_ROUNDINGS = 2  # a run with other backend against one whose initial weights were rounded once more
STILL_ONE_RUN = 0.1  # |ln ratio| of the losses of two runs that have not drifted apart as unrelated runs do

# --- comfyui ---
SAMPLED_FLOAT32 = (
    2e-5  # some tens of float32 steps whose first states are of size σ₁ = 56: roundings of 56 · 1.2e-7
)
EULER_FROM_STAND_IN = 2.0**-7  # roundings of states of size 2^15 in float32: 2^-9 each, some of them added
ESTIMATE_IN_COMFYUI = 1e-6  # of the largest value of x0: some float32 operations (eps 1.2e-7) at any level
SNAPPED_TIMESTEP = (
    4e-5  # a level within 2^-23 of the table's is taken for it; timesteps lie 0.0033 apart in log σ
)

# --- other tools ---
PIPELINE_FLOAT32 = (
    2e-5  # eight float32 steps under guidance 4, over latents of order one: FLOAT32_BETAS among them
)
PIPELINE_CLAMPED = (
    1e-3  # diffusers starts at sigma_edm 4096 instead of ∞: 1/4096 of noise up to 4 in the first x0
)
FOLDED_DECODE = (
    1e-5  # float32 through the tiny autoencoder, its two 1×1 convolutions rounded once: some hundred ulps
)

# --- data ---
CLOCK_SHARE = 0.25  # of a second, which a busy machine may spend between two readings of the clock
CONTROL_READ_SECONDS = (
    1e-4  # of processor time to look for a control file: some fifty times what a stat takes
)
READ_ROWS_SECONDS = 2.0  # of processor time for 10,000 rows of metrics.jsonl, some ten times what they take
QUERY_SECONDS = 2.0  # of processor time for a page of a selection among six million images
NEW_ROW_SECONDS = 1.0  # until a new row is answered; the page asks every second, and shall show it within two
STUDIO_BYTES = 200e6  # of the studio's memory, whatever is looked at
PLAN_SECONDS = (
    1.0  # of processor time for an epoch of a million images, 40 times what benchmarks/results/plan.json has
)

# --- memory and arithmetic ---
PRINTED_TERAFLOPS = 0.005  # half of the last place of TFLOP printed with two decimals
PRINTED_GIBIBYTES = 0.05  # half of the last place of GiB printed with one decimal
PRINTED_SUM = 0.025  # five values, each rounded to two decimals
PRINTED_DIGITS = 0.01  # of a product of two values, each printed with three digits
ESTIMATED_SPEED = (
    0.1  # of the measured speed: what a run's first steps promise of it, in the processor's time
)
MEASURED_MEMORY = (
    0.05  # of torch.cuda.max_memory_allocated: workspaces of cuBLAS and cuDNN, rounding to blocks
)
PLANNED_STATE = 0.05  # of an optimizer: what docs/memory.md promises of the plan
PROFILED_MEMORY = 0.01  # scalars of the loss, and the allocator's rounding to 64 bytes
EARLY_LAYERS = 0.03  # share of the tiny network before its first residual block adds the embedding

# --- paper ---
KEPT_NUMBER = 1e-4  # kept with six digits; Pillow's resampling may round a level of 255 otherwise elsewhere
BOOTSTRAP_COVERAGE = 0.05  # three standard errors of a share of 0.95 over 200 samples
ENLARGED_SCENE = 0.001  # of an exponent: enlarging rounds to levels of 255 and weighs the edge anew
PRINTED_ASPECT_ERROR = 0.001  # N prints 0.033; sides are whole px
MEASURED_ROOT = 0.05  # of an exponent of −0.5, over a few hundred draws of at most eight images
