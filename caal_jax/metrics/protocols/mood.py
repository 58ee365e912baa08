"""The official evaluation of the MOOD challenge 2020, on its folders of predictions and labels.

python -m caal_jax.metrics.protocols.mood --predictions=DIR --labels=DIR --mode=pixel|sample

Bit for bit the number of MIC-DKFZ/mood's scripts/evalresults.py with scikit-learn's average
precision, but in constant memory: predictions become float16 there, so the counts of its 15,361
levels in [0, 1] hold all that matters. Later editions of the challenge changed details.
"""

import random
import sys
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from absl import app, flags

from caal_jax.errors import InputError

_ONE = int(np.float16(1).view(np.uint16))  # bits of floats >= 0 order like integers


class MoodResult(NamedTuple):
    """score: average precision. outcome: for each label file "scored", or why it was not:
    the prediction is "missing", "unreadable" or of a "wrong shape" (it then counts as all zeros),
    or the "label is unreadable" (the case is dropped)."""

    score: float
    outcome: dict[str, str]


class MoodBootstrap(NamedTuple):
    """score: mean of `scores`; splits: the cases of each run, by their place in sorted order."""

    score: float
    scores: list[float]
    splits: list[list[int]]


def evaluate_pixel(predictions, labels):
    """`MoodResult` over all voxels of all label volumes in the folder `labels`.

    predictions: a folder of NIfTI volumes with the same file names; extra ones are ignored. They
    are read as float16 and clipped to [0, 1]. Labels are rounded and clipped to 0 or 1. Without
    any positive the score is 0, as scikit-learn's. Raises: InputError for NaN in a prediction,
    at which the official script ends, and if no label can be read.
    """
    return _result(*_read_folder(predictions, labels, _pixel_counts), labels)


def evaluate_sample(predictions, labels):
    """`MoodResult` of one score for each volume, on folders of text files with equal names.

    The first line of a label is an integer, 0 or 1; that of a prediction a number, clipped to
    [0, 1]; a missing or invalid one counts as 0. The rest as in `evaluate_pixel`.
    """
    return _result(*_read_folder(predictions, labels, _sample_counts), labels)


def bootstrap_pixel(predictions, labels, *, num_runs=10, num_files=2, seed=123, splits=None):
    """`MoodBootstrap`: the mean over `num_runs` draws of `num_files` of the cases.

    Drawn without replacement by Python's `random`, whose state is not touched; splits: draws to
    use instead, such as those of another run. The rest as in `evaluate_pixel`.
    """
    return _bootstrap(predictions, labels, _pixel_counts, num_runs, num_files, seed, splits)


def bootstrap_sample(predictions, labels, *, num_runs=10, num_files=2, seed=123, splits=None):
    """`bootstrap_pixel` of the sample task; see `evaluate_sample`."""
    return _bootstrap(predictions, labels, _sample_counts, num_runs, num_files, seed, splits)


def _read_folder(predictions, labels, read):
    """({label file name: {score: (negatives, positives)} or None}, {label file name: outcome})."""
    predictions, labels = Path(predictions), Path(labels)
    for folder in (predictions, labels):
        if not folder.is_dir():
            raise InputError(
                folder,
                found="no folder",
                expected="a folder of predictions and one of labels with equal file names",
                remedy="Check the path.",
            )
    counts, outcome = {}, {}
    for name in sorted(path.name for path in labels.iterdir()):
        counts[name], outcome[name] = read(predictions / name, labels / name)
    return counts, outcome


def _pixel_counts(prediction, label):
    try:
        # A NaN label is no positive: the official cast to an integer makes it negative.
        positive = np.rint(nib.load(label).get_fdata(caching="unchanged")) >= 1
    except Exception:  # any failure to read counts alike, as in the official script
        return None, "label is unreadable"
    scores, outcome = np.zeros(positive.shape, np.float16), "scored"
    if not prediction.exists():
        outcome = "missing"
    else:
        try:
            with np.errstate(over="ignore"):  # beyond float16: infinite, and clipped
                read = nib.load(prediction).get_fdata(caching="unchanged", dtype=np.float16)
            if read.shape != positive.shape:
                outcome = "wrong shape"
            else:
                scores = np.clip(read, 0.0, 1.0)
        except Exception:
            outcome = "unreadable"
    if np.isnan(scores).any():
        raise _nan(prediction)
    bits = np.ascontiguousarray(scores).view(np.uint16).ravel() & np.uint16(0x7FFF)  # -0 is 0
    both = np.bincount(2 * bits.astype(np.intp) + positive.ravel(), minlength=2 * _ONE + 2)
    return both.reshape(-1, 2), outcome


def _sample_counts(prediction, label):
    try:
        with label.open() as file:
            positive = int(file.readline())
    except (OSError, ValueError):
        return None, "label is unreadable"
    if positive not in (0, 1):
        raise InputError(
            label, found=f"{positive}", expected="0 or 1", remedy="Correct the label file."
        )
    score, outcome = 0.0, "scored"
    if not prediction.exists():
        outcome = "missing"
    else:
        try:
            with prediction.open() as file:
                score = float(np.clip(float(file.readline()), 0.0, 1.0))
        except (OSError, ValueError):
            outcome = "unreadable"
    if np.isnan(score):
        raise _nan(prediction)
    return (score, positive), outcome


def _nan(prediction):
    return InputError(
        prediction,
        found="NaN",
        expected="numbers; the official script ends at such a prediction",
        remedy="Write 0 where a prediction failed.",
    )


def _pooled_score(counts):
    """Average precision of what `_pixel_counts` or `_sample_counts` gave for several cases."""
    if isinstance(counts[0], np.ndarray):
        by_level = np.sum(counts, axis=0)
    else:
        scores, positive = map(np.array, zip(*counts, strict=True))
        _, level = np.unique(scores, return_inverse=True)
        by_level = np.stack([np.bincount(level, positive == side) for side in (0, 1)], axis=-1)
    # Every line up to the return orders and rounds as scikit-learn does.
    false, true = np.cumsum(by_level[by_level.any(axis=1)][::-1], axis=0).T.astype(np.float64)
    precision = true / (true + false)
    recall, precision = np.append(true[::-1] / max(true[-1], 1), 0.0), precision[::-1]
    return float(max(0.0, -np.sum(np.diff(recall) * precision)))


def _result(counts, outcome, labels):
    return MoodResult(_pooled_score(_usable(counts.values(), labels)), outcome)


def _usable(counts, labels):
    usable = [one for one in counts if one is not None]
    if not usable:
        raise InputError(
            labels,
            found="no readable label",
            expected="at least one label file",
            remedy="Check that this is the folder of the labels of this task.",
        )
    return usable


def _bootstrap(predictions, labels, read, num_runs, num_files, seed, splits):
    counts = list(_read_folder(predictions, labels, read)[0].values())
    if splits is None:
        if num_files > len(counts):
            raise InputError(
                labels,
                found=f"{len(counts)} label files",
                expected=f"at least the {num_files} of one draw",
                remedy="Draw fewer files, or add cases.",
            )
        draw = random.Random(seed)
        splits = [draw.sample(range(len(counts)), k=num_files) for _ in range(num_runs)]
    scores = [_pooled_score(_usable([counts[i] for i in split], labels)) for split in splits]
    return MoodBootstrap(float(np.mean(scores)), scores, splits)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    given = flags.FLAGS
    evaluate = evaluate_pixel if given.mode == "pixel" else evaluate_sample
    try:
        found = evaluate(given.predictions, given.labels)
    except InputError as error:
        sys.exit(f"error: {error}")
    for name, told in found.outcome.items():
        if told != "scored":
            print(f"{name}: {told}")
    print(f"average precision {found.score!r} over {len(found.outcome)} label files")


if __name__ == "__main__":
    flags.DEFINE_string("predictions", None, "A folder of predictions.")
    flags.DEFINE_string("labels", None, "A folder of labels of the same names.")
    flags.DEFINE_enum("mode", "pixel", ["pixel", "sample"], "Volumes, or text files of scores.")
    flags.mark_flags_as_required(["predictions", "labels"])
    app.run(main)
