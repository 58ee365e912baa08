"""Raw grey levels to [0, 1], and which pixels show the body."""

import jax
import jax.numpy as jnp

from caal_jax.errors import InputError


def rescale(image, low, high):
    """Maps [low, high] linearly to [0, 1] and clips what lies beyond.

    image: any shape, integers or floats; low, high: scalars in the image's own units.
    Returns float32 of the image's shape; all zeros where high <= low (a constant image).
    """
    image = jnp.asarray(image).astype(jnp.float32)
    low = jnp.asarray(low, jnp.float32)
    width = jnp.asarray(high, jnp.float32) - low
    scaled = (image - low) / jnp.where(width > 0, width, 1.0)
    return jnp.where(width > 0, jnp.clip(scaled, 0.0, 1.0), 0.0)


def foreground(image, *, threshold=0.05):
    """Pixels that show the body and not the dark air around it.

    A pixel is foreground where the brightest channel, averaged over 5 x 5 pixels (of volumes
    5 x 5 x 5) with the border values repeated outside, exceeds the threshold: single noisy pixels
    in air stay out, and so do thin dark gaps inside the body stay in. Black vessels or ventricles
    wider than that are lost; give a mask of your own where that matters.

    image: (H, W, C) or (D, H, W, C) in [0, 1]; returns the same with one channel, bool.
    The mean is that of scipy.ndimage.uniform_filter(size=5, mode="nearest").
    """
    if image.ndim not in (3, 4):
        raise InputError(
            "image",
            found=f"shape {image.shape}",
            expected="(H, W, C) or (D, H, W, C)",
            remedy="Lift the function over batches with jax.vmap.",
        )
    brightest = jnp.pad(jnp.max(image, axis=-1), 2, mode="edge")
    axes = brightest.ndim
    for axis in range(axes):
        window = tuple(5 if a == axis else 1 for a in range(axes))
        sums = jax.lax.reduce_window(brightest, 0.0, jax.lax.add, window, (1,) * axes, "valid")
        brightest = sums / 5
    return (brightest > threshold)[..., None]
