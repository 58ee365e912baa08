"""The streaming twin of the ranking and calibration metrics: one fixed histogram of scores."""

import numpy as np
from scipy.special import digamma

from caal_jax.metrics.calibration import (
    PROBABILITY_FLOOR,
    brier_parts_from_statistics,
    decision_calibration_error_from_statistics,
    expected_calibration_error_from_statistics,
    lesion_calibration_error_from_statistics,
    maximum_calibration_error_from_statistics,
    reliability_from_statistics,
    rms_calibration_error_from_statistics,
    with_remainder,
)
from caal_jax.metrics.inputs import check_same_shape, check_unit_interval, chunks
from caal_jax.metrics.ranking import (
    average_precision_from_counts,
    best_dice_from_counts,
    dice_from_counts,
    fpr_at_tpr_from_counts,
    roc_auc_from_counts,
)


class ScoreHistogram:
    """Sums over any number of scores in [0, 1], of constant size; two can be merged.

    statistics: (num_bins, 3) float64, the columns of each bin being negatives, positives, and the
        sum of the scores. Bin b holds b <= score * num_bins < b + 1, the last also score 1.
        `average_precision_from_counts` and its neighbours take it as it is, so a stack of the
        statistics of single cases is what `bootstrap_interval` wants.
    loss_sums: (3,) float64, the sums of squared error, of negative log-likelihood, and of ones.

    Error: the ranking metrics are exactly those of the scores rounded down to a bin, so they are
    exact where no bin holds both classes; `bounds` gives the interval in which the exact values
    of the data seen so far must lie. Brier score and NLL are exact. The expected calibration
    error (num_bins=15) is off by at most twice the share of scores in fine bins that an edge
    k/15 cuts or touches; with equal mass, in fine bins that one of its edges cuts. The lesion's is
    off by at most the width of a fine bin.

    Labels may be soft (in [0, 1]): a score then counts as positive by its label's share.
    """

    def __init__(self, num_bins=4096):
        self.statistics = np.zeros((num_bins, 3))
        self.loss_sums = np.zeros(3)

    @property
    def num_bins(self):
        return len(self.statistics)

    def update(self, scores, labels):
        """Adds scores and labels of any equal shapes, in place; returns itself.

        Raises InputError unless both are in [0, 1], finite, and of one shape.
        """
        scores = check_unit_interval("scores", scores).ravel()
        labels = np.asarray(labels).ravel()
        check_same_shape("scores", scores, "labels", labels)
        if labels.dtype != bool:
            labels = check_unit_interval("labels", labels)
            if ((labels == 0) | (labels == 1)).all():
                labels = labels == 1
        add = self._add_hard if labels.dtype == bool else self._add_soft
        for chunk in chunks(scores, labels):
            add(*chunk)
        return self

    def _bins(self, scores):
        # The product is taken in the scores' own precision: exact for a power of two.
        bins = (scores * scores.dtype.type(self.num_bins)).astype(np.intp)
        return np.minimum(bins, self.num_bins - 1, out=bins)

    def _add_hard(self, scores, labels):
        bins = self._bins(scores)
        both = np.bincount(2 * bins + labels, minlength=2 * self.num_bins)
        scores = scores.astype(np.float64)
        self.statistics[:, :2] += both.reshape(-1, 2)
        self.statistics[:, 2] += np.bincount(bins, scores, minlength=self.num_bins)
        error = np.where(labels, 1 - scores, scores)
        likelihood = np.clip(1 - error, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
        self.loss_sums += error @ error, -np.sum(np.log(likelihood)), scores.size

    def _add_soft(self, scores, labels):
        bins = self._bins(scores)
        scores = scores.astype(np.float64)
        for column, weights in enumerate((1 - labels, labels, scores)):
            self.statistics[:, column] += np.bincount(bins, weights, minlength=self.num_bins)
        error = scores - labels
        clipped = np.clip(scores, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
        log_loss = -(labels @ np.log(clipped) + (1 - labels) @ np.log1p(-clipped))
        self.loss_sums += error @ error, log_loss, scores.size

    def merge(self, other):
        """Adds another histogram of as many bins, in place; returns itself."""
        check_same_shape(
            "statistics", other.statistics, "the histogram merged into", self.statistics
        )
        self.statistics += other.statistics
        self.loss_sums += other.loss_sums
        return self

    def average_precision(self):
        return float(average_precision_from_counts(self.statistics))

    def roc_auc(self):
        return float(roc_auc_from_counts(self.statistics))

    def fpr_at_tpr(self, tpr=0.95):
        return float(fpr_at_tpr_from_counts(self.statistics, tpr))

    def best_dice(self):
        return float(best_dice_from_counts(self.statistics))

    def threshold(self):
        """The t, a lower edge of a bin, for which `scores >= t` has the best Dice; or NaN."""
        dice = dice_from_counts(self.statistics)
        if np.isnan(dice).any():
            return float("nan")
        return float(np.flatnonzero(dice == dice.max())[-1] / self.num_bins)

    def dice(self, threshold):
        """Pooled Dice of `scores >= threshold`, which is rounded up to the next edge of a bin."""
        dice = np.append(dice_from_counts(self.statistics), 0.0)
        return float(dice[int(np.clip(np.ceil(threshold * self.num_bins), 0, self.num_bins))])

    def expected_calibration_error(self, num_bins=15, *, equal_mass=False):
        return float(
            expected_calibration_error_from_statistics(
                self.statistics, num_bins, equal_mass=equal_mass
            )
        )

    def maximum_calibration_error(self, num_bins=15, *, equal_mass=False):
        return float(
            maximum_calibration_error_from_statistics(
                self.statistics, num_bins, equal_mass=equal_mass
            )
        )

    def rms_calibration_error(self, num_bins=15, *, equal_mass=False, debiased=False):
        return float(
            rms_calibration_error_from_statistics(
                self.statistics, num_bins, equal_mass=equal_mass, debiased=debiased
            )
        )

    def decision_calibration_error(self, num_bins=15):
        return float(decision_calibration_error_from_statistics(self.statistics, num_bins))

    def lesion_calibration_error(self):
        """Mean of 1 - score over the positives, the ECE of those alone; NaN without any."""
        return float(lesion_calibration_error_from_statistics(self.statistics))

    def brier_score(self):
        return self._mean_loss(0)

    def brier_decomposition(self, num_bins=15):
        """`BrierParts` over equal-width bins, of hard labels."""
        parts = map(float, brier_parts_from_statistics(self.statistics, num_bins))
        return with_remainder(*parts, self.brier_score())

    def negative_log_likelihood(self):
        return self._mean_loss(1)

    def _mean_loss(self, index):
        return float(self.loss_sums[index] / self.loss_sums[2]) if self.loss_sums[2] else np.nan

    def precision_recall_curve(self):
        """Precision, recall and threshold (K,) each, by falling threshold, empty bins left out.

        Precision is NaN nowhere; recall is NaN without positives.
        """
        false, true, edges = self._falling()
        with np.errstate(invalid="ignore"):
            return true / (true + false), true / true[-1:], edges

    def roc_curve(self):
        """False and true positive rate and threshold (K,) each, by falling threshold."""
        false, true, edges = self._falling()
        with np.errstate(invalid="ignore"):
            return false / false[-1:], true / true[-1:], edges

    def _falling(self):
        used = np.flatnonzero(self.statistics[:, :2].any(axis=1))[::-1]
        false, true = np.cumsum(self.statistics[used, :2], axis=0).T
        return false, true, used / self.num_bins

    def reliability(self, num_bins=15, *, equal_mass=False):
        """Mean score, mean label and weight (num_bins,) each, of bins of equal width or weight.

        Empty bins are NaN with weight 0.
        """
        return reliability_from_statistics(self.statistics, num_bins, equal_mass=equal_mass)

    def bounds(self):
        """Intervals (low, high) that must hold the exact values for hard labels.

        Keys: average_precision, roc_auc, fpr_at_tpr (at 0.95), best_dice.
        """
        used = self.statistics[self.statistics[:, :2].any(axis=1), :2][::-1]
        here_false, here_true = used.T
        false, true = np.cumsum(used, axis=0).T
        negatives, positives = used.sum(axis=0)
        if not positives or not negatives:
            nan = (float("nan"), float("nan"))
            return dict.fromkeys(("average_precision", "roc_auc", "fpr_at_tpr", "best_dice"), nan)
        before_false, before_true = false - here_false, true - here_true
        # Inside a bin, the order is best when its positives come first and share one score ...
        best = here_true * true / np.maximum(true + before_false, 1)
        # ... and worst when they come last one by one: sum_i (t + i) / (t + i + f), i = 1 .. here.
        worst = here_true - false * (digamma(true + false + 1) - digamma(before_true + false + 1))
        auc = roc_auc_from_counts(used[::-1])
        slack = 0.5 * np.sum(here_false * here_true) / (negatives * positives)
        reached = np.flatnonzero(true / positives >= 0.95 - 1e-12)[0]
        return {
            "average_precision": (worst.sum() / positives, best.sum() / positives),
            "roc_auc": (auc - slack, auc + slack),
            "fpr_at_tpr": (before_false[reached] / negatives, false[reached] / negatives),
            "best_dice": (
                np.max(2 * true / (true + false + positives)),
                np.max(2 * true / (true + before_false + positives)),
            ),
        }
