"""Is a predicted standard deviation as large as the errors are? For real-valued labels.

A label may itself be known as a distribution only, N(label, label_std^2), as a probabilistic
synthesis task makes it; every quantity below is then its expectation over that.
"""

import numpy as np
from scipy.special import ndtr, ndtri

from caal_jax.errors import InputError
from caal_jax.metrics.inputs import check_same_shape, check_scores, check_unit_interval, chunks

# Smaller standard deviations are taken as this: float32 sums over samples leave noise below it.
STD_FLOOR = 1e-3
LEVELS = (0.5, 0.8, 0.9, 0.95)


class SpreadHistogram:
    """Sums over any number of predicted means and standard deviations, of constant size.

    levels: of the central intervals mean +- z std of a normal distribution whose coverage is
        counted.
    statistics: (num_bins, 4) float64, of bins of equal width in log std: items, summed std,
        summed variance, summed squared error.
    z_sums: (3,) float64: items, summed z = (label - mean) / std, summed z^2.
    covered: (len(levels),) float64: labels inside each interval.

    Two of these merge. All but `normalised_error` is exact; its bins of equal mass are cut through
    bins of std, which are 0.7 % wide.
    """

    def __init__(self, num_bins=1024, *, levels=LEVELS):
        self.levels = tuple(levels)
        self.statistics = np.zeros((num_bins, 4))
        self.z_sums = np.zeros(3)
        self.covered = np.zeros(len(self.levels))

    def update(self, mean, std, labels, label_std=None):
        """Adds predictions and labels of any equal shapes, in place; returns itself.

        mean, labels: finite. std, label_std: in [0, 1]; label_std is 0 by default.
        Raises InputError for other values and for differing shapes.
        """
        mean, labels = (check_scores(n, a).ravel() for n, a in (("mean", mean), ("labels", labels)))
        std = check_unit_interval("std", std).ravel()
        label_std = np.zeros_like(std) if label_std is None else label_std
        label_std = check_unit_interval("label_std", label_std).ravel()
        for name, values in (("std", std), ("labels", labels), ("label_std", label_std)):
            check_same_shape(name, values, "mean", mean)
        for part in chunks(mean, std, labels, label_std):
            self._add(*(column.astype(np.float64) for column in part))
        return self

    def _add(self, mean, std, labels, label_std):
        std = np.maximum(std, STD_FLOOR)
        error = labels - mean
        squared = error**2 + label_std**2
        num_bins = len(self.statistics)
        bins = np.log(std / STD_FLOOR) * (num_bins / -np.log(STD_FLOOR))
        bins = np.minimum(bins, num_bins - 1).astype(np.intp)
        for column, weights in enumerate((None, std, std**2, squared)):
            self.statistics[:, column] += np.bincount(bins, weights, minlength=num_bins)
        self.z_sums += error.size, np.sum(error / std), np.sum(squared / std**2)
        for at, level in enumerate(self.levels):
            self.covered[at] += np.sum(_covered(error, std, label_std, level))

    def merge(self, other):
        """Adds another histogram of as many bins and the same levels, in place; returns itself."""
        check_same_shape(
            "statistics", other.statistics, "the histogram merged into", self.statistics
        )
        if other.levels != self.levels:
            raise InputError(
                "levels",
                found=f"{other.levels}",
                expected=f"{self.levels}, as in the histogram merged into",
                remedy="Make both with the same levels.",
            )
        self.statistics += other.statistics
        self.z_sums += other.z_sums
        self.covered += other.covered
        return self

    def coverage(self):
        """{level: share of labels inside}; as large as the level where the std is right."""
        return {
            level: _ratio(count, self.z_sums[0])
            for level, count in zip(self.levels, self.covered, strict=True)
        }

    def sharpness(self):
        """Mean predicted standard deviation; small is good, once the coverage is right."""
        return _ratio(self.statistics[:, 1].sum(), self.z_sums[0])

    def z_score_std(self):
        """Standard deviation of (label - mean) / std: 1 if right, larger if too sure."""
        count, total, squares = self.z_sums
        return float(np.sqrt(squares / count - (total / count) ** 2)) if count else float("nan")

    def normalised_error(self, num_bins=15):
        """Expected normalised calibration error: the mean of |RMSE - RMV| / RMV over bins.

        Bins hold equal numbers of items of rising std; RMSE is the root mean squared error in a
        bin, RMV its root mean predicted variance.
        Paper: Levi et al. 2022 (doi:10.3390/s22155540).
        """
        items = self.statistics[:, 0].sum()
        if not items:
            return float("nan")
        sums = np.concatenate([np.zeros((1, 4)), np.cumsum(self.statistics, axis=0)])
        edges = np.linspace(0, items, num_bins + 1)
        variance, squared = np.diff(
            [np.interp(edges, sums[:, 0], sums[:, column]) for column in (2, 3)]
        )
        return float(np.mean(np.abs(np.sqrt(squared) - np.sqrt(variance)) / np.sqrt(variance)))


def interval_coverage(mean, std, labels, level, label_std=None):
    """Share of labels inside the central interval of N(mean, std^2) that should hold `level`.

    mean, std, labels, label_std: any equal shapes, all pooled, as in `SpreadHistogram.update`.
    NaN without items.
    """
    found = SpreadHistogram(1, levels=(level,)).update(mean, std, labels, label_std)
    return found.coverage()[level]


def _covered(error, std, label_std, level):
    """Probability that mean + error + label_std * normal is within the interval of the level."""
    half = std * ndtri((1 + level) / 2)
    spread = np.maximum(label_std, 1e-12)
    return ndtr((half - error) / spread) - ndtr((-half - error) / spread)


def _ratio(total, count):
    return float(total / count) if count else float("nan")
