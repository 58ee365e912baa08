"""Numbers by image, patient, kind or size from the sums of single cases."""

import numpy as np


def by_group(statistics, groups, metric):
    """The metric of each group's summed statistics: {group: value}, groups in sorted order.

    statistics: (N, ...), additive over cases; groups: (N,) what each case belongs to, such as its
    own name for numbers per image, or the patient. metric: maps statistics (G, ...) to (G,), such
    as `average_precision_from_counts`. NaN where the metric is undefined for a group.
    """
    statistics = np.asarray(statistics, np.float64)
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((names.size, *statistics.shape[1:]))
    np.add.at(sums, member, statistics)
    return dict(zip(names.tolist(), np.asarray(metric(sums)).tolist(), strict=True))


def macro_mean(values):
    """(mean, number) of the values that are defined; NaN if none is.

    values: (N,), or what `by_group` returns. The mean weighs every group alike, so that neither
    one large lesion nor one patient with many images decides.
    """
    values = np.array(list(values.values() if isinstance(values, dict) else values), np.float64)
    defined = values[~np.isnan(values)]
    return (float(defined.mean()) if defined.size else float("nan")), int(defined.size)


# Upper ends of the share of an image that is anomalous; what lies above is "> 10 %".
SIZES = {"<= 0.1 %": 0.001, "0.1 to 1 %": 0.01, "1 to 10 %": 0.1, "> 10 %": 1.0}


def size_group(num_positives, num_pixels):
    """The name in `SIZES` for an image with so many anomalous pixels.

    The steps are fixed, not quantiles of the test set, so that two test sets can be compared.
    """
    share = num_positives / num_pixels
    return next(name for name, upper in SIZES.items() if share <= upper)
