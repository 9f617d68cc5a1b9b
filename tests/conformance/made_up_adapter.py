"""Adapter of the made-up trainer, written from docs/conformance_adapter.md alone."""

from tests.conformance import made_up_trainer as trainer


class Adapter:
    name, version = "made-up trainer", "1.4"
    noise = trainer.Noise(ztsnr=True)

    def schedule(self, zero_snr):
        return trainer.Noise(zero_snr).abar

    def noised(self, x0, eps, t):
        return self.noise.mix(x0, eps, t)

    def target(self, x0, eps, t):
        return self.noise.velocity(x0, eps, t)

    def weight(self, t, gamma):
        return self.noise.loss_weight(t, gamma)

    def guide(self, cond, uncond, scale, rescale):
        if rescale:
            raise NotImplementedError("no rescale")
        return trainer.guided(cond, uncond, scale)

    def assign(self, sizes):
        return [trainer.closest(width, height) for width, height in sizes]

    def crop(self, image, bucket):
        cropped, top, left = trainer.fit(image, *bucket)
        return cropped, (*image.shape[1:], top, left, bucket[1], bucket[0])

    def size_ints(self, original, crop, target):
        return trainer.conditioning(original[1], original[0], *crop, target[1], target[0])
