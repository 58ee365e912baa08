"""metrics: maps, scores and truth in, numbers with intervals out. NumPy on the host.

Exact metrics want everything at once; `ScoreHistogram`, `RegionHistogram` and `RiskHistogram` are
their streaming twins of constant memory, and the statistics of single cases feed the bootstrap.
"""

from caal_jax.metrics.bootstrap import (
    bootstrap_interval,
    image_bootstrap_interval,
    resample_weights,
)
from caal_jax.metrics.calibration import (
    brier_score,
    expected_calibration_error,
    expected_calibration_error_from_statistics,
    negative_log_likelihood,
)
from caal_jax.metrics.histogram import ScoreHistogram
from caal_jax.metrics.ranking import (
    average_precision,
    average_precision_from_counts,
    best_dice,
    best_dice_from_counts,
    best_dice_threshold,
    fpr_at_tpr,
    fpr_at_tpr_from_counts,
    rank_counts,
    roc_auc,
    roc_auc_from_counts,
)
from caal_jax.metrics.regions import RegionHistogram, aupimo, aupro, aupro_from_counts
from caal_jax.metrics.selective import (
    RiskHistogram,
    aurc,
    aurc_from_statistics,
    error_auroc,
    excess_aurc,
)

__all__ = [
    "RegionHistogram",
    "RiskHistogram",
    "ScoreHistogram",
    "aupimo",
    "aupro",
    "aupro_from_counts",
    "aurc",
    "aurc_from_statistics",
    "average_precision",
    "average_precision_from_counts",
    "best_dice",
    "best_dice_from_counts",
    "best_dice_threshold",
    "bootstrap_interval",
    "brier_score",
    "error_auroc",
    "excess_aurc",
    "expected_calibration_error",
    "expected_calibration_error_from_statistics",
    "fpr_at_tpr",
    "fpr_at_tpr_from_counts",
    "image_bootstrap_interval",
    "negative_log_likelihood",
    "rank_counts",
    "resample_weights",
    "roc_auc",
    "roc_auc_from_counts",
]
