"""One prediction at the level of pixels, slices and volumes (or single images).

Paper: Baugh et al. 2023, Many tasks make light work (doi:10.1007/978-3-031-43907-0_16). Reference:
matt-baugh/many-tasks-make-light-work, evaluation/eval_metrics.py.
"""

import numpy as np

from caal_jax.metrics.image_scores import mean, percentile_75, top_quarter
from caal_jax.metrics.inputs import check_maps
from caal_jax.metrics.ranking import average_precision, average_precision_from_counts, roc_auc

SCORES = {"mean": mean, "percentile_75": percentile_75, "top_quarter": top_quarter}

# A slice with no more than 5 anomalous pixels at 128 x 128 is normal (Zimmerer et al.).
SLICE_SHARE = 5 / 128**2


def slice_labels(mask, share=SLICE_SHARE):
    """Which slices of (D, H, W) hold a larger share of anomalous pixels than `share`: (D,) bool."""
    return np.mean(mask, axis=(1, 2)) > share


def slice_level(maps, masks):
    """AP and AUROC of all slices of volumes, for three scores: {score: {"ap", "auroc"}}.

    maps, masks: as many maps as masks, (D, H, W) each. NaN where undefined.
    """
    pairs = list(check_maps(maps, masks))
    labels = np.concatenate([slice_labels(mask) for _, mask in pairs])
    return _of_scores([one for scores, _ in pairs for one in scores], labels)


def volume_level(maps, masks):
    """The same for whole maps, (H, W) or (D, H, W) each, anomalous if the mask is not empty."""
    pairs = list(check_maps(maps, masks))
    return _of_scores([scores for scores, _ in pairs], [mask.any() for _, mask in pairs])


def _of_scores(items, labels):
    found = {}
    for name, function in SCORES.items():
        scores = [function(item) for item in items]
        found[name] = {"ap": average_precision(scores, labels), "auroc": roc_auc(scores, labels)}
    return found


def pixel_ap_in_batches(counts, *, batch_size=20, num_repeats=10):
    """Pixel AP as the mean over batches of samples, (num_repeats,), one order of samples each.

    counts: (N, K, 2) of each sample, such as stacked `bin_counts`. Orders come from NumPy's
    generator with seeds 0, 1, ...; a batch without positives counts 0. Report mean and standard
    deviation over the repeats, beside the pooled AP, which this is not.
    """
    counts = np.asarray(counts, np.float64)
    repeats = []
    for seed in range(num_repeats):
        order = np.random.default_rng(seed).permutation(len(counts))
        batches = [
            counts[order[start : start + batch_size]].sum(axis=0)
            for start in range(0, len(counts), batch_size)
        ]
        repeats.append(np.nan_to_num(average_precision_from_counts(np.stack(batches))).mean())
    return np.array(repeats)
