"""Maps of probabilities, and scores of images, turned into probabilities that can be believed.

Fitted on held-out healthy and synthetic data, never on the test split. Calibration for synthetic
anomalies is not calibration for real ones: reports show both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from caal_jax.errors import InputError

# Logits of probabilities nearer to 0 or 1 than this are taken at this distance.
_FLOOR = 1e-7
_NUM_BINS = 1024


class Calibration(NamedTuple):
    """Temperature scaling of pixels: logit -> logit / temperature + bias."""

    temperature: float
    bias: float


class ImageCalibration(NamedTuple):
    """Logistic map from an image score to a probability: score -> slope * score + intercept."""

    slope: float
    intercept: float


def fit_temperature(probabilities, labels, weights=None, *, fit_bias=False):
    """Calibration that minimises the negative log-likelihood of held-out labels.

    probabilities: any shape, in [0, 1], pixels of mean maps. labels: that shape, in [0, 1], soft
        or hard. weights: that shape, 1 each by default; items of weight 0 are skipped whatever
        they hold. For more pixels than fit in memory see `fit_temperature_from_sums`.
    fit_bias: whether to fit a bias too, as is wise where anomalies are far rarer than in training.
    The temperature is kept in [0.05, 20], the bias in [-20, 20].
    Raises InputError without any weight, or for values outside [0, 1].
    Paper: Guo et al. 2017 (doi:10.48550/arXiv.1706.04599); Platt 1999 for the bias.
    """
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels, float)
    weights = np.ones(labels.shape) if weights is None else np.asarray(weights, float)
    if not probabilities.shape == labels.shape == weights.shape:
        raise InputError(
            "probabilities",
            found=f"shapes {probabilities.shape}, {labels.shape} and {weights.shape}",
            expected="one shape for probabilities, labels and weights",
            remedy="Give one label and one weight for each probability.",
        )
    used = weights > 0
    probabilities, labels, weights = probabilities[used], labels[used], weights[used]
    if not labels.size:
        raise InputError(
            "weights",
            found="no item of positive weight",
            expected="held-out pixels to calibrate on",
            remedy="Hold out some healthy images.",
        )
    for name, values in (("probabilities", probabilities), ("labels", labels)):
        if not ((values >= 0) & (values <= 1)).all():
            raise InputError(
                name,
                found="values outside [0, 1], or NaN",
                expected="values in [0, 1]",
                remedy="Give probabilities, not logits.",
            )
    slope, bias = _fit_logistic(
        logit(np.clip(probabilities, _FLOOR, 1 - _FLOOR)),
        labels,
        weights,
        slopes=(1 / 20, 1 / 0.05),
        intercepts=(-20.0, 20.0) if fit_bias else (0.0, 0.0),
    )
    return Calibration(temperature=1 / slope, bias=bias)


def calibration_sums(probabilities, labels):
    """Sums over pixels in bins of equal logit width: (1024, 3) float64; add those of more pixels.

    probabilities, labels: any equal shapes, in [0, 1]. Columns: pixels, their summed
    probabilities, their summed labels. Bins of equal probability would be too coarse near 0 and 1,
    where most pixels of a confident map are.
    """
    probabilities, labels = np.ravel(probabilities).astype(float), np.ravel(labels).astype(float)
    limit = logit(1 - _FLOOR)
    z = logit(np.clip(probabilities, _FLOOR, 1 - _FLOOR))
    bins = np.clip((z + limit) * (_NUM_BINS / (2 * limit)), 0, _NUM_BINS - 1).astype(np.intp)
    return np.stack(
        [np.bincount(bins, w, minlength=_NUM_BINS) for w in (None, probabilities, labels)], axis=-1
    )


def fit_temperature_from_sums(sums, *, fit_bias=False):
    """`fit_temperature` from `calibration_sums` (1024, 3); the bins are 0.03 wide in logit."""
    pixels, probability, label = sums[sums[:, 0] > 0].T
    # A sum of equal ones may be rounded to a hair above its bin's count.
    means = np.minimum([probability / pixels, label / pixels], 1.0)
    return fit_temperature(*means, pixels, fit_bias=fit_bias)


def apply(calibration, mean):
    """Calibrated probability of a mean map of any shape; keeps the order of pixels."""
    clipped = jnp.clip(mean, _FLOOR, 1 - _FLOOR)
    scaled = (jnp.log(clipped) - jnp.log1p(-clipped)) / calibration.temperature + calibration.bias
    return jax.nn.sigmoid(scaled)


def fit_image_calibration(healthy_scores, synthetic_scores):
    """ImageCalibration from scores of held-out healthy and held-out corrupted images, (N,), (M,).

    Logistic regression on Platt's smoothed targets 1 / (N + 2) and (M + 1) / (M + 2), so that
    separable scores give a finite slope. The slope is never negative: a higher score must not make
    an anomaly less probable. Equal scores give one probability, the share of corrupted images,
    smoothed. Probabilities hold for that share; other prevalences shift the intercept.
    Raises InputError where a group is empty or a score is not finite.
    Paper: Platt 1999; Lin, Lin and Weng 2007 (doi:10.1007/s10994-007-5018-6).
    """
    groups = [np.ravel(np.asarray(s, float)) for s in (healthy_scores, synthetic_scores)]
    for name, scores in zip(("healthy_scores", "synthetic_scores"), groups, strict=True):
        check_image_scores(name, scores)
    num_healthy, num_synthetic = map(len, groups)
    targets = np.repeat(
        [1 / (num_healthy + 2), (num_synthetic + 1) / (num_synthetic + 2)],
        [num_healthy, num_synthetic],
    )
    scores = np.concatenate(groups)
    # Standardised, so that the bounds and the optimiser see the same problem at any scale.
    centre, scale = scores.mean(), scores.std()
    if scale <= 1e-12 * max(1.0, abs(centre)):
        return ImageCalibration(slope=0.0, intercept=float(logit(targets.mean())))
    slope, intercept = _fit_logistic(
        (scores - centre) / scale,
        targets,
        np.ones(len(scores)),
        slopes=(0.0, 1e3),
        intercepts=(-1e3, 1e3),
    )
    slope = float(slope / scale)
    return ImageCalibration(slope, float(intercept - slope * centre))


def image_probability(calibration, score):
    """Probability that an image with this score is abnormal, by an ImageCalibration; a float."""
    return float(expit(calibration.slope * score + calibration.intercept))


def check_image_scores(name, scores):
    if not scores.size or not np.isfinite(scores).all():
        raise InputError(
            name,
            found=f"{scores.size} scores, {np.count_nonzero(~np.isfinite(scores))} not finite",
            expected="at least one, all finite",
            remedy="Score held-out images with a trained model first.",
        )


def _fit_logistic(x, targets, weights, *, slopes, intercepts):
    """Minimises the weighted cross-entropy of sigmoid(slope * x + intercept) within bounds.

    x, targets, weights: (N,). Convex, hence one optimum and no starts to choose.
    """
    weights = weights / weights.sum()

    def loss_and_gradient(parameters):
        z = parameters[0] * x + parameters[1]
        residual = weights * (expit(z) - targets)
        loss = weights @ (np.logaddexp(0, z) - targets * z)
        return loss, np.array([residual @ x, residual.sum()])

    start = [np.clip(1.0, *slopes), 0.0]
    found = minimize(
        loss_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[slopes, intercepts],
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000},
    )
    return float(found.x[0]), float(found.x[1])
