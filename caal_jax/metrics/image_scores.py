"""One number for an image or a volume from its map: every way that the field's papers use."""

import numpy as np
from scipy.signal import savgol_filter

from caal_jax.metrics.inputs import check_scores


def mean(scores):
    """Mean of the map (NSA, PII)."""
    return float(np.mean(scores, dtype=np.float64))


def largest(scores):
    """Largest score."""
    return float(np.max(scores))


def top_mean(scores, share=0.01):
    """Mean of the largest share of the scores, at least one of them."""
    scores = np.ravel(scores)
    count = max(1, int(share * scores.size))
    return mean(np.partition(scores, scores.size - count)[-count:])


def percentile_75(scores):
    """75th percentile, linearly interpolated."""
    return float(np.percentile(scores, 75))


def mean_above_75(scores):
    """Mean of the scores above the map's own 75th percentile (PII); of all if none is above."""
    above = scores[scores > np.percentile(scores, 75)]
    return mean(above) if above.size else mean(scores)


def top_quarter(scores):
    """Mean of the largest quarter, its size rounded down (many-tasks); at least one score."""
    return top_mean(scores, 0.25)


def fpi_subject(volume):
    """FPI's score of a subject: top quarter of the smoothed means of slices, (D, H, W) -> float.

    Slice means are smoothed by a Savitzky-Golay filter of order 3 over a tenth of the slices; the
    mean of the largest quarter, its number rounded up, is the score. Fewer than 40 slices give a
    window too short for that order and are not smoothed. May leave [0, 1] a little.
    Paper: Tan et al. 2022, FPI, MELBA 2022:013. Reference: jemtan/FPI, fpiSubmit.py.
    """
    slices = np.mean(volume, axis=tuple(range(1, np.ndim(volume))), dtype=np.float64)
    window = int(0.1 * len(slices) // 2) * 2 + 1
    if window > 3:
        slices = savgol_filter(slices, window, 3)
    return mean(np.sort(slices)[int(0.75 * len(slices)) :])


IMAGE_SCORES = {
    "mean": mean,
    "mean_above_75": mean_above_75,
    "percentile_75": percentile_75,
    "top_quarter": top_quarter,
    "top_1_percent": top_mean,
    "largest": largest,
}


def image_scores(scores):
    """Every score of one map, a dict of floats: `IMAGE_SCORES`, and FPI's for volumes.

    scores: (H, W) or (D, H, W), finite; higher is more anomalous.
    """
    scores = check_scores("scores", scores)
    found = {name: function(scores) for name, function in IMAGE_SCORES.items()}
    if scores.ndim == 3:
        found["fpi_subject"] = fpi_subject(scores)
    return found
