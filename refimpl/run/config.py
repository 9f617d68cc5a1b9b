"""The configuration of a run: one frozen dataclass per section of the TOML file (N §4, S §2.5).

Every field is checked when the object is built, so a run that starts is a run whose settings make sense.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from refimpl.checks import check_at_least
from refimpl.data.config import BucketConfig, DataConfig, TagWeightConfig
from refimpl.diffusion.config import DiffusionConfig
from refimpl.errors import InputError, Problem, WrongSettings
from refimpl.latents.config import LatentConfig, VAEConfig
from refimpl.model.config import UNetConfig
from refimpl.model.lora.config import LoRAConfig
from refimpl.run.optimizer_config import OptimizerConfig, check_together
from refimpl.run.train_config import TrainConfig
from refimpl.sample.config import SampleConfig
from refimpl.text.config import ImagePromptConfig, TextConfig


@dataclass(frozen=True)
class Stage:
    """A stage of the run with its own resolution, data and learning rate (S §2.5: 256 → 512 → multi-aspect 1024)."""

    from_step: int
    """First optimizer step of the stage; the first stage begins at 0."""
    buckets: BucketConfig = field(default_factory=BucketConfig)
    """Resolutions of the stage."""
    folder: str = ""
    """Images of the stage (N §4: later stages are more curated); empty for data.folder."""
    batch_size: int = 0
    """Images per micro-batch; 0 for train.batch_size."""
    learning_rate: float = 0.0
    """Peak learning rate; 0 for optimizer.learning_rate."""

    offset_noise: float | None = None
    """Strength s of offset noise in this stage (S §2.5); diffusion.offset_noise when left out."""

    def __post_init__(self) -> None:
        check_at_least("stages.from_step", self.from_step, 0)
        check_at_least("stages.batch_size", self.batch_size, 0)
        check_at_least("stages.learning_rate", self.learning_rate, 0)
        check_at_least("stages.offset_noise", self.offset_noise or 0.0, 0)


@dataclass(frozen=True)
class Config:
    """Everything that defines a run; saved as config.json in the run folder and in each checkpoint."""

    data: DataConfig
    """Images and captions."""
    buckets: BucketConfig
    """Training resolutions."""
    vae: VAEConfig
    """Architecture of the autoencoder."""
    latents: LatentConfig
    """Weights of the autoencoder, and the scale and shift of its latents."""
    text: TextConfig
    """Text towers and tokenizer."""
    unet: UNetConfig
    """Architecture of the UNet."""
    diffusion: DiffusionConfig
    """Schedule, parameterisation and loss weight."""
    tag_weights: TagWeightConfig
    """Loss weight by tags (N §4.3)."""
    optimizer: OptimizerConfig
    """The optimizer and its learning rate."""
    train: TrainConfig
    """The training loop."""
    sample: SampleConfig
    """Sampling."""
    stages: tuple[Stage, ...] = ()
    """Stages of the run; empty for a single stage with `buckets` and `data.folder`."""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """Low-rank adapters, trained instead of the weights."""
    image_prompt: ImagePromptConfig = field(default_factory=ImagePromptConfig)
    """An image as the prompt (S §2.6)."""

    def __post_init__(self) -> None:
        problems = [*self._misfits(), *self._contradictions()]
        if problems:
            raise WrongSettings("", [Problem(text, is_whole=True) for text in problems], self)

    def _misfits(self) -> Iterator[str]:
        """Settings of two sections that do not fit each other."""
        factor = self.vae.factor
        for stage in self.all_stages():
            uneven = [size for size in _sizes(stage) if size[0] % factor or size[1] % factor]
            for width, height in uneven[:1]:
                step = stage.buckets.step
                other = f"make buckets.step a multiple of {factor}, not {step}"
                if (width, height) in stage.buckets.extra:
                    other = "correct it in buckets.extra"
                yield f"bucket {width}×{height} is not a multiple of the VAE's factor {factor}; {other}"
        starts = [stage.from_step for stage in self.all_stages()]
        if starts[0] != 0 or sorted(set(starts)) != starts:
            yield f"stages.from_step {starts} must begin with 0 and increase"
        if self.sample.grid == "leading" and self.diffusion.zero_terminal_snr:
            yield (
                "sample.grid 'leading' skips t = 999, the one timestep that zero terminal SNR is about; "
                "use native or trailing, or diffusion.zero_terminal_snr = false"
            )
        if self.sample.terminal != "exact" and not self.diffusion.zero_terminal_snr:
            yield (
                f"sample.terminal {self.sample.terminal} replaces σ = ∞, where a schedule without "
                "diffusion.zero_terminal_snr does not end; use exact"
            )
        for name in ("width", "height"):
            if getattr(self.sample, name) % factor:
                yield f"sample.{name} {getattr(self.sample, name)} is not a multiple of the VAE's {factor}"
        wanted = (self.text.context_dim, self.text.vector_dim)
        if (self.unet.context_dim, self.unet.vector_dim) != wanted:
            yield (
                f"unet.context_dim {self.unet.context_dim} and vector_dim {self.unet.vector_dim} do not fit the "
                f"{self.text.towers} text towers with text.vector {self.text.vector!r}, which need {wanted[0]} and "
                f"{wanted[1]}; correct unet.context_dim and unet.vector_dim, or text.towers"
            )
        if (
            self.unet.in_channels != self.vae.latent_channels
            or self.unet.out_channels != self.vae.latent_channels
        ):
            yield (
                f"unet.in_channels {self.unet.in_channels} and unet.out_channels {self.unet.out_channels} must be "
                f"vae.latent_channels {self.vae.latent_channels}"
            )
        if self.train.pixel_budget:
            sizes = (size for stage in self.all_stages() for size in _sizes(stage))
            larger = [size for size in sizes if self.train.pixel_budget < size[0] * size[1]]
            for width, height in larger[:1]:
                yield (
                    f"train.pixel_budget {self.train.pixel_budget} is less than one {width}×{height} image "
                    f"({width * height} px); raise it or drop the bucket"
                )
            if self.data.plan != "global":
                yield "train.pixel_budget needs data.plan = 'global'; N's per-rank plan has one batch size"
        try:
            check_together(self.optimizer, self.train)
        except InputError as error:
            yield str(error)
        if self.optimizer.kind == "prodigy" and self.text.is_trained:
            yield (
                "optimizer.kind 'prodigy' estimates one rate for all that trains; leave text.learning_rate_l and "
                "text.learning_rate_g at 0, or use another kind"
            )

    def _contradictions(self) -> Iterator[str]:
        """Ways of training that contradict each other."""
        if (self.lora.rank or self.image_prompt.folder) and not self.train.init_from:
            what = "lora.rank" if self.lora.rank else "image_prompt.folder"
            yield f"{what} trains a small part of a finished network; name that network with train.init_from"
        if self.image_prompt.folder and (self.lora.rank or self.text.is_trained):
            yield (
                "image_prompt.folder trains the UNet's label_emb and nothing else (S §2.6); leave lora.rank, "
                "text.learning_rate_l and text.learning_rate_g at 0"
            )
        if self.lora.rank and bool(self.lora.text_targets) != self.text.is_trained:
            yield (
                "lora.text_targets says what to adapt in a text tower, text.learning_rate_l and learning_rate_g "
                f"which tower; got targets {list(self.lora.text_targets)} and rates {self.text.learning_rate_l} "
                f"and {self.text.learning_rate_g}: give both or neither"
            )

    def all_stages(self) -> tuple[Stage, ...]:
        """The stages of the run with every default filled in; a run without `stages` is one stage."""
        return tuple(
            replace(
                stage,
                folder=stage.folder or self.data.folder,
                batch_size=stage.batch_size or self.train.batch_size,
                learning_rate=stage.learning_rate or self.optimizer.learning_rate,
                offset_noise=self.diffusion.offset_noise
                if stage.offset_noise is None
                else stage.offset_noise,
            )
            for stage in self.stages or (Stage(from_step=0, buckets=self.buckets),)
        )


def _sizes(stage: Stage) -> list[tuple[int, int]]:
    """A stage's buckets; none where the settings of them were refused, which has been said (`unchecked`)."""
    try:
        return stage.buckets.sizes()
    except InputError:
        return []
