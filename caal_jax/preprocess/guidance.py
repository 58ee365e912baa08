"""Where equalised images enter a synthetic anomaly: everywhere, as gradients, or in its label."""

import jax.numpy as jnp

from caal_jax.errors import InputError
from caal_jax.preprocess.equalise import equalize_foreground, equalize_hist, equalize_like
from caal_jax.preprocess.intensity import foreground as find_foreground

WAYS = ("none", "preprocess", "source_guidance", "both_guidance", "label_only")


def guide(corrupt, way, *, equalise_foreground, foreground_threshold):
    """The same corruption, with equalised images put to use in one of five ways.

    corrupt: `corrupt(key, target, source, foreground) -> Anomaly`, any task or sequence of tasks;
        so is the returned function. Its images are those that the network is to see:
    "none", "preprocess": as they are; for "preprocess" they come equalised from `prepare`, which
        is all that it takes.
    "source_guidance": the source alone is equalised, and the target stays what it was. A task
        that copies gradients so copies larger ones.
    "both_guidance": the anomaly is made from both images equalised; what it changes is then added
        to the original target and clipped to the target's range. Blends meet the target's own
        values at their rim, and where they keep the target's gradients nothing changes: written
        as a Poisson problem, div(guidance - target gradient) comes from the equalised images.
    "label_only": the anomaly is made from the original images. Where the task sees one, the label
        becomes |T(corrupted) - T(target)|, T the equalisation of the clean target and the largest
        of all channels counted; label_std grows by the same factor.
    equalise_foreground: equalise the foreground alone, as in `prepare`; the source's is found
    with foreground_threshold. target, source: (H, W, C) in [0, 1]; foreground: (H, W, 1) bool.

    Nothing is ever equalised after blending: a patch changes the histogram and so every pixel.
    After "up-scaling of gradients" in arXiv:2303.13227, which leaves open how it is done; ours.
    """
    if way not in WAYS:
        raise InputError(
            "equalise",
            found=repr(way),
            expected=" or ".join(map(repr, WAYS)),
            remedy="Choose one of these.",
        )

    def equalised(image, foreground):
        return (
            equalize_foreground(image, foreground) if equalise_foreground else equalize_hist(image)
        )

    def equalised_source(source):
        return equalised(source, find_foreground(source, threshold=foreground_threshold))

    def source_guidance(key, target, source, foreground):
        return corrupt(key, target, equalised_source(source), foreground)

    def both_guidance(key, target, source, foreground):
        clean = equalised(target, foreground)
        made = corrupt(key, clean, equalised_source(source), foreground)
        image = jnp.clip(target + (made.image - clean), jnp.min(target), jnp.max(target))
        is_changed = jnp.any(image != target, axis=-1, keepdims=True)
        return made._replace(
            image=image,
            label=jnp.where(is_changed, made.label, 0.0),
            label_std=jnp.where(is_changed, made.label_std, 0.0),
        )

    def label_only(key, target, source, foreground):
        made = corrupt(key, target, source, foreground)
        mask = foreground if equalise_foreground else None

        def largest(change):
            return jnp.max(jnp.abs(change), axis=-1, keepdims=True)

        before, after = (equalize_like(x, target, mask=mask) for x in (target, made.image))
        upscaled, plain = largest(after - before), largest(made.image - target)
        gain = jnp.where(plain > 0, upscaled / jnp.where(plain > 0, plain, 1.0), 1.0)
        label = jnp.where(made.label > 0, upscaled, 0.0)
        return made._replace(
            label=label, label_std=jnp.where(made.label_std > 0, gain * made.label_std, 0.0)
        )

    ways = (corrupt, corrupt, source_guidance, both_guidance, label_only)
    return dict(zip(WAYS, ways, strict=True))[way]
