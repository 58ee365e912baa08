"""Maps that any tool made, and the truth, in; the same numbers and report as for our own runs out.

Called by `python -m caal_jax.evaluate --predictions=DIR --truth=DIR --output=DIR`.
"""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from caal_jax import files, metrics
from caal_jax.case_statistics import CaseStatistics, add_ranking
from caal_jax.confidence.decision import volume_score
from caal_jax.data.folder import NORMAL_NAMES
from caal_jax.data.readers import read_image, read_mask, stem_of, suffix_of
from caal_jax.defaults import training_config
from caal_jax.errors import InputError
from caal_jax.evaluate import Unfinished, scores_csv, versions, write_results
from caal_jax.report.sprites import case_budget_bytes, make_sprites
from caal_jax.summarise import summarise

SCORE_FRACTION = 0.01  # image score: mean of this top share of the map
NUM_KNOTS = 1024


class Pair(NamedTuple):
    """One case. prediction: None where the tool left none; truth: None for an empty mask."""

    key: str
    kind: str
    prediction: Path | None
    truth: Path | None


class Scale(NamedTuple):
    """Scores of any range to [0, 1] with their order kept: `knots` are mapped to equal steps.

    lowest, highest: of all maps.
    """

    knots: np.ndarray
    lowest: float
    highest: float

    def rank(self, values):
        return np.interp(values, self.knots, np.linspace(0, 1, len(self.knots)))

    def shown(self, values):
        """For pictures: as it is within [0, 1], else linear between the ends of all maps."""
        if self.lowest >= 0 and self.highest <= 1:
            return values
        return (values - self.lowest) / max(self.highest - self.lowest, 1e-12)


def score_maps(predictions, truth, output, *, slice_axis=2):
    """Scores a folder of anomaly maps against a folder of masks.

    predictions: NIfTI, PNG (as a share of its type's largest value), .npy or any other supported
        image; higher is more anomalous, any range. truth: masks of the same names, below the same
        sub-folders; `_anomaly` and `_mask` at the end of a name do not count. The sub-folder of a
        mask names the kind of anomaly; an empty mask is a normal case, and so is a map without a
        mask below a folder called good or normal. Other maps without a mask are ignored.
    slice_axis: the axis of volumes that is cut into slices for the pictures.
    A case whose map is missing, unreadable, of another shape or not finite counts as scored lowest
    everywhere, as in MOOD, and is told in the notes. The image score is the mean of the top
    SCORE_FRACTION of the map. Ranking metrics come from 4096 levels, finest where scores are high;
    a note gives the bounds of the exact pixel AP.
    Writes metrics.json, scores.csv, report.html, figures/ and the statistics that
    `caal_jax.compare` reads into `output`. Returns the results, as in metrics.json.
    Raises: InputError if a folder is missing, if no map and mask belong together, or if a mask
    cannot be read.
    """
    began = time.monotonic()
    output = Path(output)
    pairs, ignored = find_pairs(Path(predictions), Path(truth))
    scale, broken = read_scale(pairs, slice_axis)
    statistics = output / "predictions" / "statistics"
    unfinished = Unfinished(statistics, of_run=datetime.now(UTC).isoformat())
    cases, lost = [], dict(broken)
    names = files.distinct_names([pair.key for pair in pairs])
    budget = case_budget_bytes(len(pairs))
    for name, pair in zip(names, tqdm(pairs, desc="scoring", unit="case"), strict=True):
        values = None if pair.key in lost else read_scores(pair.prediction, slice_axis)
        mask = _mask(pair, values, slice_axis)
        if values is None or values.shape != mask.shape:
            if values is not None:
                lost[pair.key] = f"a map of {values.shape} for a mask of {mask.shape}"
            values = np.full(mask.shape, scale.lowest, np.float32)
        case = _statistics(pair, values, mask, scale)
        case.sprites = make_sprites(None, mask, scale.shown(values), None, budget_bytes=budget)
        unfinished.save(name, case)
        cases.append(case)
    config = training_config()
    results, curves = summarise(config, cases)
    notes = [f"{len(ignored)} maps without a mask were ignored."] if ignored else []
    if lost:
        key, why = next(iter(lost.items()))
        notes.append(
            f"{len(lost)} cases count as scored lowest everywhere; the first is {key}: {why}."
        )
    low, high = _bounds(cases)["average_precision"]
    notes.append(
        f"Maps were cut into 4096 levels: the exact pixel AP is in [{low:.5f}, {high:.5f}]."
    )
    results["data"] = {
        "name": Path(truth).resolve().name,
        "maps": Path(predictions).resolve().name,
        "is_phantom": False,
        "stamp": "",
        "num_test": len(cases),
        "notes": notes,
    }
    results["run"] = {
        "score": f"mean of the top {SCORE_FRACTION:.0%} of the map",
        "seed": config.seed,
        "versions": versions(),
        "wall_seconds": round(time.monotonic() - began, 1),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    files.write_text(output / "predictions" / "scores.csv", scores_csv(cases))
    write_results(output, results, curves, [], cases)
    unfinished.finish()
    return results


def find_pairs(predictions, truth):
    """(`Pair`s in order of their names, maps that have no mask). Raises `InputError`."""
    maps = _by_key(predictions, "_anomaly")
    masks = _by_key(truth, "_mask")
    pairs = [Pair(key, _kind(key), maps.get(key), path) for key, path in masks.items()]
    ignored = []
    for key, path in maps.items():
        if key not in masks:
            if {part.lower() for part in Path(key).parts[:-1]} & set(NORMAL_NAMES):
                pairs.append(Pair(key, "normal", path, None))
            else:
                ignored.append(path)
    if not any(pair.prediction and pair.truth for pair in pairs):
        raise InputError(
            predictions,
            found=f"{len(maps)} maps, such as {next(iter(maps), 'none')!r}, and {len(masks)} masks,"
            f" such as {next(iter(masks), 'none')!r}, none of them of one name",
            expected="a map for each mask, under the same name",
            remedy="Rename the maps, or check --predictions and --truth.",
        )
    return sorted(pairs), ignored


def _kind(key):
    return Path(key).parent.name or "abnormal"


def _by_key(folder, ending):
    """{path below the folder without suffix and ending: file}, in order."""
    if not folder.is_dir():
        raise InputError(folder, found="no folder", expected="a folder", remedy="Check the path.")
    found = {}
    for path in sorted(folder.rglob("*")):
        known = suffix_of(path) or path.suffix.lower() == ".npy"
        if not known or not path.is_file() or path.name.startswith("."):
            continue
        stem = path.stem if path.suffix.lower() == ".npy" else stem_of(path)
        if stem.endswith("_uncertainty"):
            continue
        key = (path.relative_to(folder).parent / stem.removesuffix(ending)).as_posix()
        if key in found:
            raise InputError(
                folder,
                found=f"both {found[key].name} and {path.name}",
                expected="one file for each case",
                remedy="Remove one of them.",
            )
        found[key] = path
    return found


def read_scores(path, slice_axis=2):
    """A map (H, W), or (D, H, W) with the slice axis first, float32.

    Integer images become shares of their type's largest value. Raises: InputError as `read_image`,
    or if the map has several channels or a value that is not finite.
    """
    if path.suffix.lower() == ".npy":
        values = _read_npy(path)
        values = np.moveaxis(values, slice_axis, 0) if values.ndim == 3 else values
    else:
        image = read_image(path, slice_axis=slice_axis).image
        if image.shape[-1] != 1:
            raise InputError(
                path,
                found=f"{image.shape[-1]} channels",
                expected="a map of one channel",
                remedy="Save the scores, not a coloured picture of them.",
            )
        values = image[..., 0]
        if suffix_of(path) in (".png", ".jpg", ".jpeg", ".tif", ".tiff"):
            largest = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1
            values = values / np.float32(largest)
    return values.astype(np.float32)


def _read_npy(path):
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            path,
            found=f"no readable array ({error})",
            expected="a .npy file of numbers",
            remedy="Save it with numpy.save.",
        ) from error
    if values.ndim not in (2, 3) or values.dtype.kind not in "buif" or not values.size:
        found = f"shape {values.shape}, {values.dtype}"
    elif not np.isfinite(values).all():
        found = "NaN or infinite values"
    else:
        return values
    raise InputError(
        path,
        found=found,
        expected="finite numbers, (H, W) or three axes",
        remedy="Save one map per file.",
    )


def read_scale(pairs, slice_axis):
    """(`Scale` that suits all maps, {key: why its map cannot be used})."""
    samples, broken, ends = [], {}, []
    for pair in tqdm(pairs, desc="reading", unit="case"):
        if pair.prediction is None:
            broken[pair.key] = "no map"
            continue
        try:
            values = np.sort(read_scores(pair.prediction, slice_axis), axis=None)
        except InputError as error:
            broken[pair.key] = str(error)
            continue
        ends += [values[0], values[-1]]
        # Evenly through the ranks, and ever denser towards the top, where anomalies are.
        top = 1 - np.geomspace(1 / values.size, 1, NUM_KNOTS)
        shares = np.concatenate([np.linspace(0, 1, NUM_KNOTS), top])
        samples.append(values[np.round(shares * (values.size - 1)).astype(int)])
    if not samples:
        raise InputError(
            pairs[0].prediction or pairs[0].key,
            found=f"no usable map; the first: {next(iter(broken.values()))}",
            expected="at least one",
            remedy="Repair the files.",
        )
    pooled = np.sort(np.concatenate(samples))
    chosen = np.linspace(0, pooled.size - 1, 2 * NUM_KNOTS).astype(int)
    knots = np.unique(np.append(pooled[chosen], ends).astype(np.float64))
    return Scale(knots, float(min(ends)), float(max(ends))), broken


def _mask(pair, values, slice_axis):
    if pair.truth is None:
        return np.zeros((1, 1) if values is None else values.shape, bool)
    if pair.truth.suffix.lower() == ".npy":
        mask = _read_npy(pair.truth)
        return (np.moveaxis(mask, slice_axis, 0) if mask.ndim == 3 else mask) > 0
    shape = read_image(pair.truth, slice_axis=slice_axis).image.shape[:-1]
    return read_mask(pair.truth, shape, slice_axis=slice_axis)


def _statistics(pair, values, mask, scale):
    label = int(mask.any())
    everywhere = np.ones(mask.shape, bool)
    found = CaseStatistics(
        case_id=pair.key,
        patient=pair.key,
        kind=pair.kind if label else "normal",
        label=label,
        score=volume_score(values, everywhere, q=SCORE_FRACTION),
        has_mask=True,
        image_scores=metrics.image_scores(values),
    )
    add_ranking(found, scale.rank(values), mask)
    if mask.ndim == 3:
        found.slices = np.stack(
            [
                [volume_score(one, everywhere[0], q=SCORE_FRACTION) for one in values],
                mask.any(axis=(1, 2)),
            ],
            axis=1,
        )
    return found


def _bounds(cases):
    pooled = metrics.ScoreHistogram()
    pooled.statistics = np.sum([case.rank for case in cases], axis=0)
    return pooled.bounds()
