"""The names that other programs call, each importable from where it is documented, with its documented arguments."""

import importlib
import inspect

import pytest

CALLED = {
    "refimpl.diffusion.schedule.sdxl_schedule": "",
    "refimpl.diffusion.schedule.zero_terminal_snr": "schedule",
    "refimpl.diffusion.schedule.NoiseSchedule.t_to_sigma_edm": "self t",
    "refimpl.diffusion.schedule.NoiseSchedule.sigma_edm_to_t": "self sigma_edm",
    "refimpl.diffusion.v_prediction.v_target": "x0 eps alpha sigma",
    "refimpl.diffusion.v_prediction.x0_from_v": "x_t v alpha sigma",
    "refimpl.diffusion.v_prediction.eps_from_v": "x_t v alpha sigma",
    "refimpl.diffusion.preconditioner.scalings": "sigma_edm sigma_data",
    "refimpl.diffusion.min_snr.min_snr_weight": "snr gamma policy floor",
    "refimpl.diffusion.philox.philox4x32": "counter key",
    "refimpl.diffusion.philox.keyed_normal": "key shape offset",
    "refimpl.ops.load_ops": "backend",
    "refimpl.ops.reference.add_noise": "x0 eps alpha sigma",
    "refimpl.ops.reference.v_loss": "prediction x0 eps alpha sigma weight",
    "refimpl.ops.reference.add_keyed_noise": "x0 key alpha sigma offset",
    "refimpl.ops.reference.keyed_v_loss": "prediction x0 key alpha sigma weight offset",
    "refimpl.ops.reference.channel_moments": "x",
    "refimpl.data.buckets.make_buckets": "max_area max_side min_side step extra",
    "refimpl.data.buckets.assign": "widths heights buckets metric",
    "refimpl.data.plan.plan_epoch": "bucket_of batch_size seed epoch world_size mode",
    "refimpl.data.plan.Plan.batches": "self rank",
    "refimpl.data.crop.cover_and_crop": "image bucket rng",
    "refimpl.data.tags.TagCounts.update": "self tags_by_class",
    "refimpl.data.tags.TagCounts.weight": "self tags_by_class",
    "refimpl.latents.welford.Welford": "channels",
    "refimpl.latents.welford.Welford.update": "self x",
    "refimpl.latents.welford.Welford.merge": "self other",
    "refimpl.latents.scale_shift.ScaleShift": "mean std",
    "refimpl.latents.scale_shift.ScaleShift.standardise": "self z",
    "refimpl.latents.scale_shift.ScaleShift.restore": "self x",
    "refimpl.text.conditioning.encode_prompts": "prompts tokenizer encoder_l encoder_g pooling",
    "refimpl.model.unet.UNet": "config",
    "refimpl.model.unet.UNet.forward": "self x t context vector",
    "refimpl.model.unet.UNetConfig.sdxl": "",
    "refimpl.model.unet.UNetConfig.refiner": "",
    "refimpl.model.unet.UNetConfig.tiny": "",
    "refimpl.latents.vae.VAE": "config",
    "refimpl.latents.vae.VAE.encode": "self",
    "refimpl.latents.vae.VAE.decode": "self",
    "refimpl.latents.vae.VAEConfig.sdxl": "",
    "refimpl.latents.vae.VAEConfig.tiny": "",
    "refimpl.model.pipeline.Model": "unet vae scale_shift",
    "refimpl.sample.grids.native": "schedule n",
    "refimpl.sample.grids.trailing": "schedule n",
    "refimpl.sample.grids.leading": "schedule n",
    "refimpl.sample.grids.karras": "",
    "refimpl.sample.grids.exponential": "",
    "refimpl.sample.grids.laplace": "",
    "refimpl.sample.grids.scale_sigma_max": "sigma_max height width base",
    "refimpl.sample.samplers.euler": "predict_v x sigmas",
    "refimpl.sample.samplers.heun": "predict_v x sigmas",
    "refimpl.sample.samplers.ddim": "predict_v x sigmas",
    "refimpl.sample.samplers.dpmpp_2m": "predict_v x sigmas",
    "refimpl.sample.guidance.cfg": "v_cond v_uncond scale",
    "refimpl.sample.guidance.rescale": "v_cfg v_cond factor",
    "refimpl.interop.single_file.load": "path",
    "refimpl.interop.single_file.save": "checkpoint path",
    "refimpl.interop.diffusers_folder.load": "path",
    "refimpl.interop.diffusers_folder.save": "checkpoint path",
    "refimpl.train.step.denoising_loss": "network model conditions latents key t weight offset ops",
}
HELD = (
    "refimpl.conformance.Adapter",
    "refimpl.data.buckets.PRESETS",
    "refimpl.data.crop.SizeInts",
    "refimpl.data.plan.Plan",
    "refimpl.data.tags.TagCounts",
    "refimpl.latents.scale_shift.NOVELAI_ANIME",
    "refimpl.latents.scale_shift.SDXL_DEFAULT",
)


def found(name: str) -> object:
    """The object of a dotted name, whose longest part that is a module is imported."""
    words = name.split(".")
    for end in range(len(words), 0, -1):
        try:
            value: object = importlib.import_module(".".join(words[:end]))
        except ModuleNotFoundError:
            continue
        for word in words[end:]:
            value = getattr(value, word)
        return value
    raise AssertionError(name)


@pytest.mark.parametrize("name", CALLED)
def test_it_is_called_with_its_documented_arguments(name: str) -> None:
    called = found(name)
    assert callable(called)
    arguments = CALLED[name].split()
    assert list(inspect.signature(called).parameters)[: len(arguments)] == arguments


@pytest.mark.parametrize("name", HELD)
def test_it_is_there(name: str) -> None:
    assert found(name)


def test_further_arguments_have_defaults() -> None:
    for name, documented in CALLED.items():
        further = list(inspect.signature(found(name)).parameters.values())[len(documented.split()) :]  # pyright: ignore[reportArgumentType]
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        if documented and name != "refimpl.model.pipeline.Model" and documented != "self":
            assert all(p.default is not p.empty or p.kind in variadic for p in further), name
