"""Does the uncertainty know where the method errs? Risk-coverage and uncertainty-error metrics."""

import numpy as np
from scipy.special import digamma

from caal_jax.errors import InputError
from caal_jax.metrics.inputs import (
    check_same_shape,
    check_scores,
    check_unit_interval,
    chunks,
)
from caal_jax.metrics.ranking import (
    average_precision_from_counts,
    roc_auc,
    roc_auc_from_counts,
)


def aurc(losses, uncertainty):
    """Area under the risk-coverage curve: the mean over i of the mean loss of the i surest items.

    losses, uncertainty: any equal shapes, all pooled, finite; lower is better. Equally uncertain
    items each count their mean loss, so that no order among them is invented. Random uncertainty
    gives about the mean loss. NaN without items.
    Paper: Geifman and El-Yaniv 2017, Geifman et al. 2019 (doi:10.48550/arXiv.1805.08206).
    """
    losses, uncertainty = _check(losses, uncertainty)
    if not losses.size:
        return float("nan")
    order = np.argsort(uncertainty)
    losses, uncertainty = losses[order], uncertainty[order]
    first = np.flatnonzero(np.append(True, uncertainty[1:] != uncertainty[:-1]))
    size = np.diff(np.append(first, losses.size))
    losses = np.repeat(np.add.reduceat(losses, first) / size, size)
    return float(np.mean(np.cumsum(losses) / np.arange(1, losses.size + 1)))


def excess_aurc(losses, uncertainty):
    """AURC minus the smallest one possible, that of items ordered by their losses; >= 0."""
    return aurc(losses, uncertainty) - aurc(losses, losses)


def risk_at_coverage(losses, uncertainty, coverage):
    """Mean loss of the surest ceil(coverage * n) items; other arguments as for `aurc`.

    coverage: in (0, 1]. Of equally uncertain items that the limit cuts, each counts their mean
    loss. NaN without items.
    """
    losses, uncertainty = _check(losses, uncertainty)
    _, block, items = np.unique(uncertainty, return_inverse=True, return_counts=True)
    sums = np.bincount(block, losses, minlength=items.size)
    return float(risk_at_coverage_from_statistics(np.stack([items, sums], -1), coverage))


def error_auroc(uncertainty, errors):
    """AUROC of uncertainty as a detector of errors; NaN if all or no items are errors.

    uncertainty, errors: any equal shapes; errors are 0 or 1, such as `(map >= t) != mask`.
    """
    return roc_auc(uncertainty, errors)


def aurc_from_statistics(statistics):
    """AURC of statistics (..., K, 2), items and summed losses by rising uncertainty; see `aurc`."""
    items, losses = np.moveaxis(np.asarray(statistics, np.float64), -1, 0)
    before, before_loss = np.cumsum(items, -1) - items, np.cumsum(losses, -1) - losses
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(items > 0, losses / items, 0.0)
        # The sum over j = 1 .. items of (before_loss + j mean) / (before + j), in closed form.
        area = losses + (before_loss - before * mean) * _harmonic(before, items)
        return (np.sum(area, -1) / np.sum(items, -1))[()]


def best_aurc_from_statistics(statistics):
    """The smallest AURC there can be for statistics (..., K, 2) of losses that are 0 or 1."""
    items, errors = np.moveaxis(np.asarray(statistics, np.float64).sum(-2), -1, 0)
    right = np.stack([items - errors, np.zeros_like(errors)], -1)
    # Every right item before the first wrong one.
    return aurc_from_statistics(np.stack([right, np.stack([errors, errors], -1)], -2))


def excess_aurc_from_statistics(statistics):
    """`excess_aurc` of statistics (..., K, 2) of losses that are 0 or 1."""
    return aurc_from_statistics(statistics) - best_aurc_from_statistics(statistics)


def risk_at_coverage_from_statistics(statistics, coverage):
    """`risk_at_coverage` of statistics (..., K, 2), items and summed losses."""
    items, losses = np.moveaxis(np.asarray(statistics, np.float64), -1, 0)
    # The tolerance forgives the rounding of a product: 0.07 of 100 items are 7.
    wanted = np.ceil(coverage * items.sum(-1, keepdims=True) - 1e-9)
    before = np.cumsum(items, -1) - items
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(items > 0, losses / items, 0.0)
        return (np.sum(np.clip(wanted - before, 0, items) * mean, -1) / wanted[..., 0])[()]


def error_auroc_from_statistics(statistics):
    """`error_auroc` of statistics (..., K, 2) of losses that are 0 or 1."""
    return roc_auc_from_counts(_error_counts(statistics))


def error_average_precision_from_statistics(statistics):
    """Average precision of uncertainty as a detector of errors, which are the losses 0 or 1."""
    return average_precision_from_counts(_error_counts(statistics))


def _error_counts(statistics):
    items, errors = np.moveaxis(np.asarray(statistics, np.float64), -1, 0)
    return np.stack([items - errors, errors], axis=-1)


def _harmonic(start, length):
    """Sum of 1 / (start + j) over j = 1 .. length."""
    return digamma(start + length + 1) - digamma(start + 1)


class RiskHistogram:
    """Losses by uncertainty: constant-size sums for `aurc` and `error_auroc` over all pixels.

    upper: the largest uncertainty there can be, ln 2 for an entropy, 1/4 for a variance.
    statistics: (num_bins, 2) float64, items and summed losses of equal bins of [0, upper].

    Error: the metrics are exactly those of the uncertainty rounded down to a bin. `bounds` gives
    the interval that must hold the exact AURC of the data seen so far.
    """

    def __init__(self, num_bins=4096, *, upper):
        self.upper = upper
        self.statistics = np.zeros((num_bins, 2))

    def update(self, losses, uncertainty):
        """Adds losses in [0, 1] and uncertainties in [0, upper], in place; returns itself.

        Values above `upper` by no more than float32 rounding (1e-6) are taken as `upper`.
        """
        uncertainty = check_unit_interval("uncertainty", uncertainty, self.upper + 1e-6).ravel()
        losses = check_unit_interval("losses", losses).ravel()
        check_same_shape("losses", losses, "uncertainty", uncertainty)
        num_bins = len(self.statistics)
        for chunk, loss in chunks(uncertainty, losses):
            bins = np.minimum((chunk * (num_bins / self.upper)).astype(np.intp), num_bins - 1)
            self.statistics[:, 0] += np.bincount(bins, minlength=num_bins)
            self.statistics[:, 1] += np.bincount(bins, loss, minlength=num_bins)
        return self

    def merge(self, other):
        """Adds another histogram with the same bins, in place; returns itself."""
        check_same_shape(
            "statistics", other.statistics, "the histogram merged into", self.statistics
        )
        if other.upper != self.upper:
            raise InputError(
                "upper",
                found=f"{other.upper}",
                expected=f"{self.upper}, as in the histogram merged into",
                remedy="Make both with the same range of uncertainty.",
            )
        self.statistics += other.statistics
        return self

    def aurc(self):
        return float(aurc_from_statistics(self.statistics))

    def bounds(self):
        """Interval (low, high) that must hold the exact AURC."""
        items, losses = self.statistics[self.statistics[:, 0] > 0].T
        if not items.size:
            return float("nan"), float("nan")
        # Whatever the order in a bin, its running loss strays from the straight line by at most
        # what all of its losses being 1 or 0, and sorted, would make.
        stray = losses * (1 - losses / items) * _harmonic(np.cumsum(items) - items, items)
        slack = stray.sum() / items.sum()
        return self.aurc() - slack, self.aurc() + slack

    def excess_aurc(self):
        """AURC minus the smallest one possible; the losses have to be errors, 0 or 1."""
        return float(excess_aurc_from_statistics(self.statistics))

    def risk_at_coverage(self, coverage):
        return float(risk_at_coverage_from_statistics(self.statistics, coverage))

    def error_auroc(self):
        """AUROC of uncertainty as a detector of errors; the losses have to be errors, 0 or 1."""
        return float(error_auroc_from_statistics(self.statistics))

    def error_average_precision(self):
        """The same as an average precision."""
        return float(error_average_precision_from_statistics(self.statistics))

    def risk_coverage_curve(self):
        """Coverage and risk (K,) each: share of items kept, surest first, and their mean loss."""
        items, losses = np.cumsum(self.statistics[self.statistics[:, 0] > 0], axis=0).T
        return items / items[-1:], losses / items


def _check(losses, uncertainty):
    losses = check_scores("losses", losses).ravel().astype(np.float64)
    uncertainty = check_scores("uncertainty", uncertainty).ravel()
    check_same_shape("losses", losses, "uncertainty", uncertainty)
    return losses, uncertainty
