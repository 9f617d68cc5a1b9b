"""Settings of sampling (N §2.3, §5, App. A; S §2.5; R)."""

import math
from dataclasses import dataclass

from refimpl.checks import check_at_least, check_choice, check_fraction, check_seed
from refimpl.errors import InputError

GRID_NAMES = (
    "native",
    "trailing",
    "leading",
    "karras",
    "exponential",
    "canvas",
    "laplace",
    "community_trainer",
)
SAMPLER_NAMES = ("euler", "euler_ancestral", "heun", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
TERMINAL_NAMES = ("exact", "20000", "4518.7637", "4096")  # N App. A.1; A.2; ComfyUI's last level; diffusers'
DEFAULT_SCALE = 4.0  # of classifier-free guidance


@dataclass(frozen=True)
class SampleConfig:
    """How images are drawn from the model (N §2.3, §5)."""

    prompts: tuple[str, ...] = ("",)
    """Fixed prompts of the sample grids."""
    seeds: int = 4
    """Images per prompt, with noise keyed by (seed, prompt, number)."""
    seed: int = 0
    """Seed of the initial noise."""
    steps: int = 28
    """Sampling steps."""
    grid: str = "native"
    """Noise levels: native, trailing, leading, karras, exponential, canvas (keeps the spread of the canvas' average
    colour: docs/grids.md), laplace or community_trainer (the ten levels of R)."""
    terminal: str = "exact"
    """How the zero-SNR end is sampled: exact (σ = ∞, N App. A.1), or a finite level in its place as other tools have
    it: 20000 (N App. A.2), 4518.7637 (ComfyUI) or 4096 (diffusers)."""
    sampler: str = "euler"
    """Sampler: euler, euler_ancestral, heun, ddim, dpmpp_2m, dpmpp_2m_sde or unipc."""
    guidance: float = DEFAULT_SCALE
    """Classifier-free guidance scale; N §5 recommends 3.5–5."""
    rescale: float = 0.0
    """CFG rescale factor φ; 0 for none."""
    aesthetic_score: float = 6.0
    """Aesthetic score that a refiner is conditioned on (S §2.5); the default is the published pipeline's."""
    negative_aesthetic_score: float = 2.5
    """Aesthetic score for the unconditional half of guidance; the default is the published pipeline's."""
    width: int = 1024
    """Width of the images, px."""
    height: int = 1024
    """Height of the images, px."""
    attention_train_side: int = 0
    """Side in px of the square canvas trained on: self-attention logits are rescaled at any other size (N refs 4,
    15; R's dynamic attention scaling). 0 turns this off."""
    attention_window: int = 0
    """Distance in px to either side that each position attends to, for very large canvases (R's sparse attention
    patterns); 0 for the whole canvas."""

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("sample.prompts is empty; give at least one prompt (it may be the empty string)")
        for name in ("seeds", "steps", "width", "height"):
            check_at_least(f"sample.{name}", getattr(self, name), 1)
        check_seed("sample.seed", self.seed)
        check_choice("sample.grid", self.grid, GRID_NAMES)
        check_choice("sample.terminal", self.terminal, TERMINAL_NAMES)
        if self.terminal != "exact" and self.grid == "community_trainer":
            raise InputError(
                f"sample.terminal {self.terminal} replaces σ = ∞, which sample.grid community_trainer does not have: "
                "its list starts at 20000; use exact"
            )
        check_choice("sample.sampler", self.sampler, SAMPLER_NAMES)
        if not math.isfinite(self.guidance):
            raise InputError(f"sample.guidance {self.guidance} must be finite")
        check_fraction("sample.rescale", self.rescale)
        for name in ("attention_train_side", "attention_window"):
            check_at_least(f"sample.{name}", getattr(self, name), 0)
        for name in ("aesthetic_score", "negative_aesthetic_score"):
            check_at_least(f"sample.{name}", getattr(self, name), 0)
