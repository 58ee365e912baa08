"""What is kept of one scored case: sums for the metrics and small pictures, never a whole map."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
from scipy.special import logit

from caal_jax import metrics
from caal_jax.breakdown import boxes_of, objects_of
from caal_jax.confidence.decision import volume_score
from caal_jax.confidence_results import correlations_of, patches_of, regions_of, risks_of
from caal_jax.errors import InputError
from caal_jax.files import write_bytes
from caal_jax.report.sprites import Sprites

LN2 = float(np.log(2))


@dataclasses.dataclass
class CaseStatistics:
    """Scores, additive sums and pictures of one case; a folder of these is all `compare` needs.

    Arrays are sums over the pixels of the case, so that those of any cases can be added. None
    where a case has no mask, or the maps no calibrated probability or uncertainty.
    """

    case_id: str
    patient: str
    kind: str
    label: int
    score: float
    has_mask: bool
    score_std: float | None = None
    probability: float | None = None
    p_value: float | None = None
    exceeds: bool | None = None
    verdict: str = ""
    uncertainty: dict = dataclasses.field(default_factory=dict)  # of the image, by name
    rank: np.ndarray | None = None  # metrics.bin_counts of rank_scale
    calibrated: np.ndarray | None = None  # ScoreHistogram.statistics of the probability
    losses: np.ndarray | None = None  # ScoreHistogram.loss_sums of the probability
    regions: np.ndarray | None = None  # RegionHistogram.statistics of rank_scale
    risks: dict = dataclasses.field(default_factory=dict)  # RiskHistogram.statistics, by name
    correlations: dict = dataclasses.field(default_factory=dict)  # of error and uncertainty
    patches: np.ndarray | None = None  # metrics.patch_counts by predictive entropy
    found_regions: tuple | None = None  # of confidence_results.regions_of
    bars: dict = dataclasses.field(default_factory=dict)  # name -> (statistics or None, score)
    slices: np.ndarray | None = None  # (D, 2): score and truth of each slice of a volume
    image_scores: dict = dataclasses.field(default_factory=dict)  # metrics.image_scores of the map
    froc: np.ndarray | None = None  # froc, lesions, pointing: of breakdown.objects_of
    lesions: np.ndarray | None = None
    pointing: np.ndarray | None = None
    boxes: np.ndarray | None = None  # of breakdown.boxes_of
    fingerprint: np.ndarray | None = None  # of caal_jax.data.fingerprint
    sprites: Sprites | None = None

    @property
    def risk(self):
        """By predictive entropy, which the main results take; None of a map alone."""
        return self.risks.get("entropy")

    @property
    def epistemic_risk(self):
        return self.risks.get("epistemic")

    def save(self, path):
        """Writes an .npz of plain arrays and one JSON text; the file appears whole or not at all.

        Raises: TypeError for a field that this format cannot hold.
        """
        facts, arrays = {}, {}
        for field in dataclasses.fields(self):
            facts[field.name] = _packed(field.name, getattr(self, field.name), arrays)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, facts=np.array(json.dumps(facts)), **arrays)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path):
        """Raises `InputError` for a file that is damaged or was written by another version."""
        try:
            # Never a pickle: a file that someone sends must not be able to run anything.
            with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as stored:
                facts = json.loads(str(stored["facts"]))
                values = {name: _unpacked(value, stored) for name, value in facts.items()}
            if values.get("sprites") is not None:
                values["sprites"] = Sprites.of(*values["sprites"])
            if values.keys() != {field.name for field in dataclasses.fields(cls)}:
                raise ValueError(f"the fields {sorted(values)}")
        except Exception as error:
            # A truncated archive raises nearly anything.
            raise InputError(
                path,
                found=f"unusable statistics of a case ({error})",
                expected="a file that this version's evaluation wrote",
                remedy="Evaluate that run again.",
            ) from error
        return cls(**values)


def _packed(name, value, arrays):
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        return value.item()
    if isinstance(value, bytes):
        value = np.frombuffer(value, np.uint8)
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if isinstance(value, (tuple, list)):
        return [_packed(f"{name}.{i}", item, arrays) for i, item in enumerate(value)]
    if isinstance(value, dict):
        items = enumerate(value.items())
        return {"dict": [[k, _packed(f"{name}.{i}", item, arrays)] for i, (k, item) in items]}
    raise TypeError(f"{name}: cannot keep a {type(value).__name__}")


def _unpacked(value, stored):
    if isinstance(value, list):
        return tuple(_unpacked(item, stored) for item in value)
    if isinstance(value, dict):
        if "array" in value:
            return stored[value["array"]]
        return {key: _unpacked(item, stored) for key, item in value["dict"]}
    return value


def rank_scale(probability):
    """Probabilities to [0, 1] with their order kept and small ones told apart.

    A histogram of equal bins of the probability would put nearly all healthy pixels into its
    first bin; logits between -14 and 14 spread them over all bins.
    """
    return np.clip((logit(np.clip(probability, 1e-6, 1 - 1e-6)) + 14) / 28, 0, 1)


def case_statistics(case, prediction, bars, *, score_fraction=0.01):
    """Reduces the maps and the truth of a case to sums, without its pictures.

    score_fraction: what share of a slice, its highest, makes its score.
    """
    has_mask = case.mask is not None
    found = CaseStatistics(
        case_id=case.case_id,
        patient=case.patient or case.case_id,
        kind=case.kind,
        label=int(case.label if case.label is not None else case.mask.any()),
        score=prediction.score,
        has_mask=has_mask,
        score_std=prediction.score_std,
        probability=prediction.probability,
        p_value=prediction.p_value,
        exceeds=bool(prediction.exceeds),
        verdict=prediction.verdict,
        uncertainty=prediction.uncertainty,
        bars={name: (None, score) for name, (_, score) in bars.items()},
        image_scores=metrics.image_scores(prediction.anomaly),
    )
    if not has_mask:
        return found
    mask = case.mask.astype(bool)
    wrong = (prediction.anomaly >= 0.5) != mask
    # Half precision, of volumes, would be too coarse for logits.
    anomaly = prediction.anomaly.astype(np.float32, copy=False)
    calibrated = metrics.ScoreHistogram().update(anomaly, mask)
    add_ranking(found, rank_scale(anomaly), mask)
    found.boxes = boxes_of(anomaly, mask)
    found.calibrated, found.losses = calibrated.statistics, calibrated.loss_sums
    found.risks = risks_of(prediction, wrong)
    found.correlations = correlations_of(prediction, mask)
    found.patches = patches_of(prediction, wrong)
    found.found_regions = regions_of(prediction, mask, case.geometry.spacing_mm)
    found.bars = {
        name: (metrics.bin_counts(np.clip(values, 0, 1), mask), score)
        for name, (values, score) in bars.items()
    }
    if case.is_volume:
        scores = [
            volume_score(one, inside, q=score_fraction)
            for one, inside in zip(prediction.anomaly, prediction.foreground, strict=True)
        ]
        found.slices = np.stack([scores, mask.any(axis=(1, 2))], axis=1)
    return found


def add_ranking(found, ranked, mask):
    """Adds the sums that need no more than the order of the map: `ranked` in [0, 1], `mask` bool,
    (H, W) or (D, H, W)."""
    found.rank = metrics.bin_counts(ranked, mask)
    found.regions = metrics.RegionHistogram().update(ranked, mask).statistics
    for name, value in objects_of(ranked, mask).items():
        setattr(found, name, value)
