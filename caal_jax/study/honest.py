"""Checks of every cell that no test label enters: planted anomalies, a null test, independence."""

import dataclasses

import numpy as np

from caal_jax import metrics
from caal_jax.case_statistics import rank_scale
from caal_jax.data.planted import KINDS, plant
from caal_jax.errors import InputError

PLANTED_EACH = 6  # held-out healthy cases that each kind of anomaly is planted in
MOST_REPEATS = 5  # test cases that are predicted a second time


def checks(run, dataset, test_scores):
    """{"planted", "null", "independence"} of a finished run, all plain numbers or None.

    run: a `FinishedRun`; dataset: its `DataSet`; test_scores: {case id: (score, label)} of its
    evaluation.
    planted: {"ap", "image_auroc", "by_kind": {kind: pixel AP}} on each kind of
        `caal_jax.data.planted`, planted in held-out healthy cases.
    null: {"auroc", "ci95"} of held-out healthy against normal test cases; a value whose interval
        leaves out 0.45 to 0.55 says that healthy scans of the two splits look different to the run.
    independence: the largest difference between the score of a test case as evaluated and when it
        is predicted again alone, in reverse order; anything but 0 is a leak between test cases.
    """
    held_out, scores = _readable(dataset.validation), {}
    for case in held_out:
        scores[case.case_id] = run.predict(case).score
    return {
        "planted": _planted(run, held_out, scores),
        "null": _null(list(scores.values()), dataset.test, test_scores),
        "independence": _independence(run, dataset.test, test_scores),
    }


def _readable(entries):
    found = []
    for entry in entries:
        try:
            found.append(entry.load())
        except InputError:
            continue
    return found


def _planted(run, cases, healthy_scores):
    counts, abnormal_scores = {}, []
    if not cases:
        return {"ap": None, "image_auroc": None, "by_kind": {}}
    for first, kind in enumerate(KINDS):
        # Each kind starts with another case, so that few kinds share all of theirs.
        turned = cases[first % len(cases) :] + cases[: first % len(cases)]
        for number, case in enumerate(turned[:PLANTED_EACH]):
            try:
                planted = plant(case.image, kind=kind, seed=(first, number))
            except InputError:
                continue  # a symmetric image has no mirrored part
            made = dataclasses.replace(case, image=planted.image, mask=planted.mask)
            found = run.predict(made)
            statistics = metrics.ScoreHistogram().update(rank_scale(found.anomaly), planted.mask)
            counts[kind] = counts.get(kind, 0) + statistics.statistics
            abnormal_scores.append(found.score)
    normal = [healthy_scores[case.case_id] for case in cases]
    labels = np.repeat([0, 1], [len(normal), len(abnormal_scores)])
    return {
        "ap": float(metrics.average_precision_from_counts(sum(counts.values()))),
        "image_auroc": float(metrics.roc_auc([*normal, *abnormal_scores], labels)),
        "by_kind": {
            kind: float(metrics.average_precision_from_counts(one)) for kind, one in counts.items()
        },
    }


def _null(held_out_scores, test_entries, test_scores):
    normal = []
    for entry in test_entries:
        if entry.case_id in test_scores and test_scores[entry.case_id][1] == 0:
            normal.append(test_scores[entry.case_id][0])
    if len(normal) < 2 or len(held_out_scores) < 2:
        return {"auroc": None, "ci95": None}
    labels = np.repeat([0, 1], [len(held_out_scores), len(normal)])
    scores = np.array([*held_out_scores, *normal])
    return {
        "auroc": float(metrics.roc_auc(scores, labels)),
        "ci95": [float(end) for end in metrics.delong_interval(scores, labels)],
    }


def _independence(run, test_entries, test_scores):
    entries = [entry for entry in test_entries if entry.case_id in test_scores][:MOST_REPEATS]
    differences = [
        abs(run.predict(entry.load()).score - test_scores[entry.case_id][0])
        for entry in reversed(entries)
    ]
    return max(differences, default=None)
