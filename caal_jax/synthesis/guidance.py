"""Where equalised images enter a synthetic anomaly: everywhere, as gradients, or in its label."""

import jax.numpy as jnp

from caal_jax.errors import InputError
from caal_jax.preprocess.equalise import equalize_foreground, equalize_hist, equalize_like
from caal_jax.preprocess.intensity import foreground as find_foreground
from caal_jax.synthesis import poisson

WAYS = ("none", "preprocess", "source_guidance", "both_guidance", "label_only")


def guide(corrupt, way, *, equalise_foreground, foreground_threshold):
    """The same corruption, with equalised images put to use in one of five ways.

    corrupt: `corrupt(key, target, source, foreground) -> Anomaly`, any task or sequence of tasks;
        so is the returned function. Its images are those that the network is to see:
    "none", "preprocess": as they are; for "preprocess" they come equalised from `prepare`, which
        is all that it takes.
    "source_guidance": the source alone is equalised, and the target stays what it was. A task
        that copies gradients so copies larger ones.
    "both_guidance": the anomaly is made from both images equalised, and what it changed is set
        into the original target: a harmonic correction takes the values along the outline from
        the equalised to the original ones. For a Poisson blend of Dirichlet values that is the
        blend of both equalised guidance fields with the original values around; the result is
        clipped to the target's range.
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
        is_changed = jnp.any(made.image != clean, axis=-1, keepdims=True)
        image = made.image + harmonic(target - clean, is_changed)
        image = jnp.clip(image, jnp.min(target), jnp.max(target))
        return made._replace(image=jnp.where(is_changed, image, target))

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


def harmonic(field, inside):
    """A field with its values inside replaced by those that continue the ones outside smoothly.

    The discrete Laplace equation with Dirichlet values; beyond the border the outermost pixels
    are repeated. field: (H, W, C) or (D, H, W, C); inside: the same with one
    channel, bool.
    """
    block = poisson.to_block(field)
    rim = [(int(axis in poisson.spatial(block)),) * 2 for axis in range(block.ndim)]
    block = jnp.pad(block, rim, mode="edge")
    slope = poisson.divergence(*poisson.gradient(block))
    rest = poisson.solve_inside(-slope, poisson.to_block(inside) > 0)
    return field + poisson.from_block(rest)
