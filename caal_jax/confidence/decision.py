"""From a map to a verdict on the image: score, threshold, p-value, and when not to decide."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from caal_jax.confidence.calibration import check_image_scores


class ImageThreshold(NamedTuple):
    """A score above `threshold` is abnormal; on healthy images at most this often."""

    threshold: float
    false_positive_rate: float


def image_score(mean_map, foreground, *, q=0.01):
    """Mean of the top share `q` of the foreground's pixels, a scalar.

    mean_map: (H, W) or (D, H, W); foreground: that shape, bool. The number of pixels is rounded
    up, so it is at least one; an image without foreground scores 0. Can be jitted and vmapped.
    """
    most = math.ceil(q * mean_map.size)
    ranked, _ = jax.lax.top_k(jnp.where(foreground, mean_map, -jnp.inf).ravel(), most)
    count = jnp.ceil(q * jnp.sum(foreground)).astype(jnp.int32)
    kept = jnp.arange(most) < count
    return jnp.sum(jnp.where(kept, ranked, 0.0)) / jnp.maximum(count, 1)


def volume_score(mean_map, foreground, *, q=0.01):
    """`image_score` on the host, without the sort of a whole volume; returns a float."""
    inside = np.asarray(mean_map)[np.asarray(foreground)]
    if not inside.size:
        return 0.0
    count = math.ceil(q * inside.size)
    inside.partition(inside.size - count)
    return float(np.mean(inside[-count:], dtype=np.float64))


def image_threshold(healthy_scores, *, false_positive_rate=0.05):
    """ImageThreshold from the scores of N held-out healthy images, (N,).

    The threshold is the k-th smallest score, k = ceil((N + 1)(1 - false_positive_rate)). A new
    healthy image, exchangeable with those, exceeds it with probability at most (N + 1 - k)/(N + 1);
    this is the rate returned, never above the one asked for while N >= 1/rate - 1 (19 images for
    0.05). With fewer images no threshold keeps the promise: the largest score is returned with the
    rate it does keep, 1 / (N + 1). Averaged over draws of the held-out images, not for each draw.
    Paper: Vovk et al. 2005; Bates et al. 2023 (doi:10.1214/22-AOS2244).
    """
    scores = np.sort(np.ravel(np.asarray(healthy_scores, float)))
    check_image_scores("healthy_scores", scores)
    # The tolerance forgives the rounding of 1 - rate: 150 * (1 - 0.18) is 123.
    wanted = math.ceil((scores.size + 1) * (1 - false_positive_rate) - 1e-9)
    k = min(max(wanted, 1), scores.size)
    return ImageThreshold(float(scores[k - 1]), (scores.size + 1 - k) / (scores.size + 1))


def conformal_p_value(score, healthy_scores):
    """(1 + number of healthy scores >= score) / (N + 1), in (0, 1]; small means unlike healthy.

    For a healthy image, exchangeable with the held-out ones, P(p <= a) <= a for every a.
    """
    healthy_scores = np.ravel(np.asarray(healthy_scores, float))
    check_image_scores("healthy_scores", healthy_scores)
    return float((1 + np.count_nonzero(healthy_scores >= score)) / (healthy_scores.size + 1))


def verdict(score, *, threshold, score_std, z=1.0):
    """ "abnormal" if score > threshold, else "normal", but "abstain" where samples disagree.

    score_std: standard deviation of the score over samples, the same image scored from each one's
    map alone. The method abstains if |score - threshold| < z * score_std: another draw of members
    could then well have decided otherwise, or the label itself is ambiguous (samples of a std
    head). A lone sample (score_std 0) or z = 0 never abstains.
    """
    if abs(score - threshold) < z * score_std:
        return "abstain"
    return "abnormal" if score > threshold else "normal"
