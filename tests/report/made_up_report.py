"""Made-up results, curves and pictures with everything a real run can hold."""

import copy

import numpy as np

from caal_jax.report import Card, GalleryItem
from caal_jax.report.sprites import make_sprites

RESULTS = {
    "pixel": {
        "ap": 0.4312,
        "ap_ci95": [0.371, 0.502],
        "auroc": 0.941,
        "auroc_ci95": [0.922, 0.958],
        "aupro": 0.612,
        "best_dice": 0.473,
        "fpr95": 0.284,
        "prevalence": 0.0123,
    },
    "image": {"ap": 0.902, "auroc": 0.871, "auroc_ci95": [0.793, 0.934], "prevalence": 0.5},
    "slice": {"image": {"auroc": 0.812}},
    "confidence": {
        "ece": 0.0213,
        "brier": 0.0091,
        "nll": 0.0412,
        "aurc": 0.00012,
        "error_auroc": 0.913,
    },
    "by_kind": {
        "deformation": {"num_cases": 8, "pixel_ap": 0.31, "prevalence": 0.01, "image_auroc": 0.82},
        "noise": {"num_cases": 8, "pixel_ap": 0.62, "prevalence": 0.02, "image_auroc": 0.95},
    },
    "bars": {
        "raw intensity": {"pixel_ap": 0.072, "pixel_auroc": 0.71, "image_auroc": 0.61},
        "equalised intensity": {"pixel_ap": 0.451, "pixel_auroc": 0.955, "image_auroc": 0.66},
    },
    "data": {
        "name": "built-in phantom",
        "is_phantom": True,
        "stamp": "phantom",
        "num_train": 64,
        "num_validation": 8,
        "num_test": 24,
        "notes": ["Two volumes were skipped: no foreground."],
    },
    "threshold": {"value": 0.412, "rule": "5% false alarms on held-out healthy images"},
    "calibration": {"temperature": 1.37, "rule": "held-out synthetic anomalies"},
    "run": {
        "config": {"seed": 0, "learning_rate": 0.0003, "num_members": 3, "task": "probabilistic"},
        "seed": 0,
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "device": "cpu x 2",
        "wall_seconds": 754.2,
        "git_commit": "0123abc",
    },
    "undefined": {},
}


def make_item(why="random", case_id="case-1", *, size=(64, 64), label=1, verdict="abnormal"):
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    middle = np.hypot(rows - size[0] / 2, columns - size[1] / 2) / max(size)
    spot = np.hypot(rows - size[0] * 0.4, columns - size[1] * 0.6) / max(size)
    wave = 0.1 * np.sin(rows / 5) * np.sin(columns / 7)
    return GalleryItem(
        case_id=case_id,
        kind="deformation",
        label=label,
        score=0.731,
        probability=0.82,
        verdict=verdict,
        uncertainty=0.043,
        image=np.clip((middle < 0.4) * (0.5 + wave) + 0.2 * (spot < 0.1), 0, 1),
        truth=spot < 0.1,
        anomaly_map=np.exp(-((spot / 0.12) ** 2)),
        uncertainty_map=0.08 * np.exp(-(((spot - 0.12) / 0.05) ** 2)),
        slice_text="slice 31 of 64",
        why=why,
    )


def make_results():
    return copy.deepcopy(RESULTS)


def make_curves():
    rng = np.random.default_rng(0)
    recall = np.linspace(0, 1, 400)
    coverage = np.linspace(0.01, 1, 100)
    bins = np.linspace(0.03, 0.97, 15)
    return {
        "precision_recall": {
            "recall": recall,
            "precision": 0.9 * (1 - recall**2) + 0.0123,
            "prevalence": 0.0123,
        },
        "roc": {
            "false_positive_rate": recall,
            "true_positive_rate": recall**0.2,
            "band": {"x": recall, "low": recall**0.3, "high": recall**0.1},
        },
        "froc": {"false_positives": [0, 0.5, 2], "sensitivity": [0.2, 0.5, 0.8]},
        "reliability": {
            "confidence": bins,
            "accuracy": bins**1.3,
            "count": np.round(1e6 * np.exp(-9 * bins)) + 1,
        },
        "risk_coverage": {
            "coverage": coverage,
            "risk": 0.01 * coverage**3,
            "random": 0.01,
            "oracle": np.maximum(0, (coverage - 0.99) / coverage),
        },
        "score_distribution": {
            "normal": rng.beta(2, 6, 40),
            "abnormal": rng.beta(5, 3, 30),
            "threshold": 0.412,
        },
    }


def make_history():
    rows = []
    for step in range(10, 2001, 10):
        fall = 0.1 + 0.6 * np.exp(-step / 400)
        rows.append({"step": step, "loss": [fall, fall * 1.05, fall * 0.97], "seconds": 1.0})
        if step % 500 == 0:
            rows[-1]["validation_loss"] = fall * 1.1
    return rows


def make_gallery():
    return [
        make_item("best", "brain-007"),
        make_item("best", "brain-012"),
        make_item("worst", "brain-003", verdict="normal"),
        make_item("worst", "brain-021", label=0),
        make_item("random", "brain-001", verdict="abstain"),
        make_item("random", "brain-018", size=(80, 64)),
    ]


def make_volume_card(case_id="brain-007", *, score=0.7, error=0.2, uncertainty=0.05, label=1):
    """A volume of 6 slices: slice s is brighter than the one before, the truth lies in slice 4."""
    depth, side = 6, 32
    image = np.broadcast_to(
        np.linspace(0.1, 0.9, depth)[:, None, None, None], (depth, side, side, 1)
    )
    truth = np.zeros((depth, side, side), bool)
    truth[4, 8:16, 8:16] = bool(label)
    anomaly = np.where(truth, 0.9, 0.02)
    sprites = make_sprites(image, truth, anomaly, 0.1 * anomaly, budget_bytes=10**6)
    return Card(
        case_id=case_id,
        kind="deformation",
        label=label,
        score=score,
        probability=abs(label - error),
        verdict="abnormal",
        uncertainty=uncertainty,
        error=error,
        sprites=sprites,
    )


def make_cards():
    return [
        make_volume_card("brain-001", score=0.2, error=0.8, uncertainty=0.01),
        make_volume_card("brain-002", score=0.9, error=0.1, uncertainty=0.09),
        make_volume_card("brain-003", score=0.5, error=0.5, uncertainty=0.05, label=0),
    ]
