"""What the metrics ask of their arguments, checked once and told in words."""

import numpy as np

from caal_jax.errors import InputError


def check_scores(name, scores):
    """Returns `scores` as an array of finite floats; float16 becomes float32."""
    scores = np.asarray(scores)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float32 if scores.dtype == np.float16 else np.float64)
    if not np.isfinite(scores).all():
        raise InputError(
            name,
            found=f"{np.count_nonzero(~np.isfinite(scores))} NaN or infinite values",
            expected="finite numbers",
            remedy="Decide what a failed prediction means (MOOD: zero) and replace it first.",
        )
    return scores


def check_same_shape(name, values, other_name, other):
    if values.shape != other.shape:
        raise InputError(
            name,
            found=f"shape {values.shape}",
            expected=f"the shape of {other_name}, {other.shape}",
            remedy="Hand over one value for each item, in the same order.",
        )


def check_binary(name, labels):
    """Returns `labels` as bool; only 0 and 1 are labels."""
    labels = np.asarray(labels)
    if labels.dtype == bool:
        return labels
    positives = labels == 1
    if not (positives | (labels == 0)).all():
        raise InputError(
            name,
            found="values other than 0 and 1",
            expected="0 for normal and 1 for anomalous",
            remedy="Threshold soft or integer masks, for example with `mask > 0`.",
        )
    return positives


def check_unit_interval(name, values, upper=1.0):
    """Returns `values` as finite floats in [0, upper]."""
    values = check_scores(name, values)
    if values.size and (values.min() < 0 or values.max() > upper):
        raise InputError(
            name,
            found=f"values from {values.min():g} to {values.max():g}",
            expected=f"values in [0, {upper:g}]",
            remedy="Map them into that range by a rule that does not look at the test set.",
        )
    return values


def check_maps(maps, masks):
    """Yields (map, bool mask) pairs, each (H, W) or (D, H, W)."""
    if len(maps) != len(masks):
        raise InputError(
            "maps",
            found=f"{len(maps)} maps",
            expected=f"as many as masks, {len(masks)}",
            remedy="Hand over one mask for each map; all zeros for a normal image.",
        )
    for index, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        scores = check_scores(f"maps[{index}]", scores)
        mask = check_binary(f"masks[{index}]", mask)
        check_same_shape(f"maps[{index}]", scores, f"masks[{index}]", mask)
        if scores.ndim not in (2, 3):
            raise InputError(
                f"maps[{index}]",
                found=f"rank {scores.ndim}",
                expected="(H, W) or (D, H, W)",
                remedy="Drop the channel axis.",
            )
        yield scores, mask


def chunks(*arrays, size=1 << 16):
    """Yields tuples of slices of equally long arrays.

    The size lets the temporary arrays of one chunk stay in the cache of one core, and bounds the
    memory that a volume needs beside itself.
    """
    for start in range(0, len(arrays[0]), size):
        yield tuple(array[start : start + size] for array in arrays)
