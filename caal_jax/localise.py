"""A finished run and a case in, a prediction out: evaluate, predict and notebooks all call this."""

import dataclasses
import functools
import inspect
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from caal_jax import localisers, parallel
from caal_jax.confidence import belief as beliefs
from caal_jax.confidence.calibration import (
    Calibration,
    ImageCalibration,
    apply,
    image_probability,
)
from caal_jax.confidence.decision import conformal_p_value, verdict, volume_score
from caal_jax.confidence.sketch import TopShareSketch, sketch, top_share_mean
from caal_jax.confidence.summaries import Region, find_regions, image_uncertainty
from caal_jax.confidence.views import look, look_back, read_views
from caal_jax.data.facts import case_range, match_channels
from caal_jax.data.letterbox import Placement, letterbox, unletterbox
from caal_jax.data.volumes import padded
from caal_jax.errors import InputError
from caal_jax.preprocess import rescale
from caal_jax.preprocess.prepare import prepare, prepare_volume, rescale_volume
from caal_jax.synthesis.guidance import WAYS
from caal_jax.windows import read_patch_size, sweep
from caal_jax.workdir import restore_members

INFERENCE_BATCH = 32  # slices per member and call, at most; a power of two
SAMPLES_PER_CALL = 64  # slices times their samples, which is what takes memory
VOXELS_PER_CALL = 2**19  # of windows, times their samples

COMPUTE_DTYPES = "float32", "bfloat16"
ONLY_2D = "fpi_wrn", "nsa_resnet18"  # localisers that do not take volumes
# Config fields that some localisers or heads take, and the values that leave them to their default.
LOCALISER_OPTIONS = {
    "width": 0,
    "depth": 0,
    "latent_levels": 0,
    "dropout": 0.0,
    "residual": True,
    "compute_dtype": "float32",
}
HEAD_OPTIONS = {"std_weight": 1.0, "num_classes": 0}

# Draws that belong to no training step take numbers that no step reaches.
INIT_DRAW, PREDICT_DRAW, CALIBRATE_DRAW = (np.uint32(2**32 - n) for n in (1, 2, 3))


def build_localiser(config):
    """The localiser that a config names, with its head and the options that the config sets.

    Raises `InputError` for unknown names, for options that the named one does not have, and for one
    that does not take volumes where `config.patch_size` asks for those.
    """
    if config.get("compute_dtype", "float32") not in COMPUTE_DTYPES:
        raise InputError(
            "config.compute_dtype",
            found=repr(config.compute_dtype),
            expected=" or ".join(map(repr, COMPUTE_DTYPES)),
            remedy="Choose one of these.",
        )
    if config.localiser in ONLY_2D and read_patch_size(config):
        known = [name for name in localisers.LOCALISERS if name not in ONLY_2D]
        raise InputError(
            "config.localiser",
            found=f"{config.localiser!r}, which is for images",
            expected=" or ".join(map(repr, known)) + ", as config.patch_size is set",
            remedy="Choose one of these, or leave config.patch_size empty.",
        )
    head = _make(config, "head", localisers.HEADS, HEAD_OPTIONS)
    given = {"head": head}
    patch, spacing = read_patch_size(config), read_spacing(config)
    if patch and config.localiser == "unet":
        # A flat patch is one of thick slices: the network first leaves its short side as it is.
        given["spacing_mm"] = spacing or tuple(max(patch) / side for side in patch)
    return _make(config, "localiser", localisers.LOCALISERS, LOCALISER_OPTIONS, **given)


def read_spacing(config):
    """`config.spacing_mm` along (D, H, W), or None where it is empty. Raises `InputError`."""
    text = config.get("spacing_mm", "")  # older runs have no such field
    if not text:
        return None
    try:
        spacing = tuple(map(float, text.split(",")))
    except ValueError:
        spacing = ()
    positive = len(spacing) == 3 and all(0 < size < math.inf for size in spacing)
    if not positive or config.localiser != "unet" or not read_patch_size(config):
        raise InputError(
            "config.spacing_mm",
            found=repr(text),
            expected="three millimetres (slices, rows, columns), as in 5,1,1, for localiser 'unet'"
            " and a config.patch_size",
            remedy="Correct it, or leave it empty to go by the sides of the patch.",
        )
    return spacing


def _make(config, field, known, unset, **given):
    """`known[config.<field>]`, called with those fields of `unset` that are not as there."""
    name = config.get(field, "std")  # runs from before there were heads have that one
    if name not in known:
        raise InputError(
            f"config.{field}",
            found=repr(name),
            expected=" or ".join(map(repr, known)),
            remedy="Choose one of these.",
        )
    options = {option: config.get(option, value) for option, value in unset.items()}
    options = {option: value for option, value in options.items() if value != unset[option]}
    takes = inspect.signature(known[name]).parameters
    for option, value in options.items():
        if option not in takes or (not isinstance(value, str) and value < 0):
            wanted = "a positive value" if option in takes else f"{unset[option]!r}"
            raise InputError(
                f"config.{option}",
                found=repr(value),
                expected=f"{wanted} for {field} {name!r}",
                remedy=f"Set --config.{option}={unset[option]} for its own default.",
            )
    return known[name](**options, **given)


def prepare_options(config):
    """The options of `prepare` and `prepare_volume` that a config names. Raises `InputError`."""
    if config.equalise not in WAYS:
        raise InputError(
            "config.equalise",
            found=repr(config.equalise),
            expected=" or ".join(map(repr, WAYS)),
            remedy="Choose one of these.",
        )
    return {
        "equalise": config.equalise,
        "equalise_foreground": config.equalise_foreground,
        "foreground_threshold": config.foreground_threshold,
    }


def build_prepare(config):
    """`prepare(raw, low, high)` of one slice or patch, as a config wants it.

    Patches of volumes are not equalised: the whole volume is, by `prepare_volume`.
    """
    options = prepare_options(config)
    if read_patch_size(config) and config.equalise == "preprocess":
        options["equalise"] = "none"
    return functools.partial(prepare, **options)


@dataclasses.dataclass(frozen=True)
class Stack:
    """Predictions for N slices on the model's grid, in NumPy; volumes have their own sides for S.

    belief: `Belief` of (N, S, S) arrays; of volumes without the predictive entropy, the sum of the
    other two. foreground: (N, S, S) bool; image: (N, S, S, C) as the network saw it, or what it was
    made from. sketches: of every sample's maps, (samples, parts, bins), a part being some of the
    slices; their sum over parts gives the sample's own score.
    """

    belief: beliefs.Belief
    foreground: np.ndarray
    image: np.ndarray
    sketches: TopShareSketch


def build_sample(config):
    """`sample(member, view, images)` -> (S, B, H, W, 1): what one member says of one view (4,).

    member: {"params", "key"}. Every view asks the same networks: a dropout mask or a latent draw
    belongs to the member and the number of the sample.
    """
    localiser = build_localiser(config)

    def sample(member, view, images):
        key = jax.random.fold_in(jax.random.wrap_key_data(member["key"]), PREDICT_DRAW)
        seen = look(view, images)
        return look_back(view, localiser.sample(member["params"], key, seen, config.num_samples))

    return sample


class Predictor:
    """A trained ensemble on the devices.

    Its samples are num_members x views of `config.augment` x num_samples maps, reduced on the
    devices to running sums and to a histogram each.
    members: {"params", "key"} stacked over members, as `train` checkpoints them.
    """

    def __init__(self, config, members):
        self._batch = self._batch_size(config)
        self._layout = layout = parallel.plan(config.num_members, self._batch)
        sample = build_sample(config)
        self._prepare = jax.jit(jax.vmap(build_prepare(config)))

        def one_round(member, live, view, images, foreground):
            samples = sample(member, view, images)
            sketches = jax.vmap(jax.vmap(sketch), (0, None))(samples, foreground)
            sketches = jax.tree.map(lambda a: a.sum(1), sketches)
            sums = jax.tree.map(lambda a: live * a, beliefs.accumulate(samples))
            return parallel.sum_over_members(sums, layout), sketches

        # The view is an argument, so that all of them share one compiled program.
        views = read_views(config.get("augment", "none"))  # older runs have no such field
        self._views = [np.broadcast_to(view, (layout.used, 4)) for view in views]
        self.num_samples = config.num_members * len(views) * config.num_samples

        self._round = parallel.lift(one_round, layout)
        self._members = parallel.place(parallel.spread(members, layout), layout)
        self._live = [parallel.live_slots(layout, r) for r in range(layout.rounds)]
        self._belief = jax.jit(beliefs.belief)
        self._calibrate = jax.jit(apply)

    @staticmethod
    def _batch_size(config):
        most = (SAMPLES_PER_CALL // config.num_samples).bit_length() - 1
        return min(INFERENCE_BATCH, 1 << max(0, most))

    def localise(self, stack):
        """A `CaseStack` -> `Stack`."""
        return self(*self.prepare(stack.raw, stack.low, stack.high))

    def picture(self, stack, found):
        """What the network saw of a `CaseStack` that gave a `Stack`: (N, S, S, C)."""
        return found.image

    def maps(self, calibration, belief):
        """Anomaly (calibrated probability), epistemic, aleatoric and std maps of a `Belief`, in its
        own arrays, which are lost."""
        for one in belief.mean:
            one[...] = by_pixels(functools.partial(self._calibrate, calibration), np.float32(one))
        np.sqrt(belief.variance, out=belief.variance)
        return belief.mean, belief.mutual_information, belief.expected_entropy, belief.variance

    def prepare(self, raw, low, high):
        """Raw slices (N, S, S, C) and their ranges (N,) -> `Prepared` of (N, ...) NumPy arrays."""
        whole = None
        for begin in range(0, len(raw), self._batch):
            here = slice(begin, begin + self._batch)
            count = len(low[here])
            part = self._prepare(*(_filled(a[here], 1) for a in (raw, low, high)))
            part = jax.tree.map(lambda a, n=count: np.asarray(a)[:n], part)
            whole = _put(whole, here, part, len(raw))
        return whole

    def __call__(self, images, foreground):
        """Prepared slices (N, S, S, C) and foreground (N, S, S, 1) -> `Stack`."""
        images, foreground = np.asarray(images), np.asarray(foreground)
        belief, sketches = None, []
        for begin in range(0, len(images), self._batch):
            here = slice(begin, begin + self._batch)
            part, drawn = self._chunk(images[here], foreground[here])
            belief = _put(belief, here, part, len(images))
            sketches.append(drawn)
        sketches = jax.tree.map(lambda *s: np.stack(s, 1), *sketches)
        return Stack(belief, foreground[..., 0], images, sketches)

    def _chunk(self, images, foreground):
        count = len(images)
        layout = self._layout
        images, inside = (_filled(a, layout.group) for a in (images, foreground))
        # Without a foreground the repeated ones add nothing to the sketches.
        live = np.arange(len(images)) < count
        inside = inside * live.reshape(-1, *[1] * (foreground.ndim - 1))
        batch = parallel.stack_batches([(images, inside)] * layout.slots, layout)
        sums, sketches = None, []
        for (member, live), view in itertools.product(
            zip(self._members, self._live, strict=True), self._views
        ):
            part, drawn = self._round(member, live, view, *batch)
            sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
            real = int(live.sum()) // layout.group
            sketches.append(jax.tree.map(lambda a, n=real: self._by_sample(a, n), drawn))
        # Every slot holds the sum over members; the first one's devices hold all shards.
        shards = jax.tree.map(lambda a: np.asarray(a)[: layout.group], sums)
        shards = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]) if a.ndim > 1 else a[0], shards)
        belief = jax.tree.map(lambda a: np.asarray(a)[:count, ..., 0], self._belief(shards))
        if self.num_samples == 1:  # what its difference of sums leaves is rounding
            belief = belief._replace(variance=np.zeros_like(belief.variance))
        return belief, jax.tree.map(lambda *s: np.concatenate(s), *sketches)

    def _by_sample(self, drawn, num_members):
        """(devices, S, bins) -> (members * S, bins), summed over the devices of a member."""
        drawn = np.asarray(drawn)[: num_members * self._layout.group]
        drawn = drawn.reshape(num_members, self._layout.group, *drawn.shape[1:]).sum(1)
        return drawn.reshape(-1, drawn.shape[-1])


def _filled(array, least):
    """Repeats the last entry up to a power of two, `least` or more: few shapes to compile for."""
    size = max(least, 1 << (len(array) - 1).bit_length())
    return array[np.minimum(np.arange(size), len(array) - 1)]


def _put(whole, here, part, length):
    """Puts the arrays of a part into those of the whole, (length, ...), made with the first part.

    Parts that are joined in the end would take the memory twice.
    """
    if whole is None:
        whole = jax.tree.map(lambda a: np.empty((length, *a.shape[1:]), a.dtype), part)
    for array, values in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
        array[here] = values
    return whole


class VolumePredictor(Predictor):
    """A `Predictor` of whole volumes by windows of `config.patch_size`, blended.

    A sample's sums are blended before the belief is made of them: where windows disagree, so does
    the belief. Maps are float16, made slice by slice: the host never holds as much as three float32
    volumes beside the one that is given (256^3 voxels, patches of 32^3, without equalisation).
    """

    def __init__(self, config, members):
        super().__init__(config, members)
        self._patch = read_patch_size(config)
        self._prepare_volume = functools.partial(prepare_volume, **prepare_options(config))
        self._equalises = config.equalise == "preprocess"
        self._rescale = jax.jit(jax.vmap(rescale, (0, None, None)))

    @staticmethod
    def _batch_size(config):
        voxels = math.prod(read_patch_size(config)) * config.num_samples
        return min(INFERENCE_BATCH, 1 << max(0, (VOXELS_PER_CALL // voxels).bit_length() - 1))

    def localise(self, stack):
        """A `CaseStack` of a volume -> `Stack`."""
        image, inside = self.prepare(stack.raw, stack.low, stack.high)
        if self._equalises:
            return self(image, inside)
        del image  # made again in the end: the windows are cut from what was read
        return self._sweep(stack.raw, stack.low[0], stack.high[0], inside)

    def picture(self, stack, found):
        if self._equalises:
            return found.image
        return rescale_volume(stack.raw, stack.low[0], stack.high[0])

    def prepare(self, raw, low, high):
        """A raw volume (D, H, W, C) and its range, (D,) times the same -> `Prepared`, in NumPy."""
        return self._prepare_volume(raw, low[0], high[0])

    def __call__(self, images, foreground):
        """A prepared volume (D, H, W, C) and its foreground (D, H, W, 1) -> `Stack`."""
        images, foreground = np.asarray(images), np.asarray(foreground)
        return self._sweep(images, 0.0, 1.0, foreground)

    def _sweep(self, volume, low, high, foreground):
        sketches = []

        def answer(windows, weights, inside):
            windows = np.asarray(self._rescale(windows, low, high))
            belief, drawn = self._chunk(windows, inside * weights[..., None])
            sketches.append(drawn)
            second = belief.variance + belief.mean**2
            return np.stack([belief.mean, second, belief.expected_entropy], axis=1)

        shape = volume.shape[:3]
        mean, variance, expected, mutual = (np.empty(shape, np.float16) for _ in range(4))
        slices = sweep(answer, volume, foreground, self._patch, self._batch)
        for k, (first, second, entropy) in enumerate(slices):
            sums = beliefs.BeliefSums(np.float32(1), first, second, entropy)
            found = by_pixels(self._belief, sums)
            mean[k], variance[k] = found.mean, found.variance
            expected[k], mutual[k] = found.expected_entropy, found.mutual_information
        belief = beliefs.Belief(mean, variance, None, expected, mutual)
        sketches = jax.tree.map(lambda *s: np.stack(s, 1), *sketches)
        return Stack(belief, foreground[..., 0], volume, sketches)


def by_pixels(function, maps):
    """`function` of a tree of maps (H, W), compiled for sizes that are powers of two only."""
    shape = next(leaf.shape for leaf in jax.tree.leaves(maps) if leaf.ndim)
    count = math.prod(shape)
    spare = (1 << (count - 1).bit_length()) - count
    flat = jax.tree.map(lambda a: np.pad(a.ravel(), (0, spare)) if a.ndim else a, maps)
    return jax.tree.map(lambda a: np.asarray(a)[:count].reshape(shape), function(flat))


def build_predictor(config, members):
    """The `Predictor` of a config, for slices or for volumes."""
    return (VolumePredictor if read_patch_size(config) else Predictor)(config, members)


class CaseStack(NamedTuple):
    """The slices of one case on the model's grid, raw, and the way back.

    raw: (N, S, S, C); low, high: (N,) float32; place: `Placement` of every slice. In a run on
    volumes raw is the volume (D, H, W, C), padded, and place three slices: where it lies in that.
    """

    raw: np.ndarray
    low: np.ndarray
    high: np.ndarray
    place: Placement | tuple[slice, ...]

    def native(self, maps):
        """Maps (N, S, S) on the grid of the case: (N, H, W), of float32 or, of volumes, as is."""
        if isinstance(self.place, Placement):
            sides = self.place.height, self.place.width
            native = np.empty((len(maps), *sides, *maps.shape[3:]), np.float32)
            for one, out in zip(maps, native, strict=True):
                out[...] = unletterbox(np.float32(one), self.place)
            return native
        return np.asarray(maps)[self.place]


def case_stack(case, *, image_size, channels, patch=None):
    """Letterboxes every slice of a case (a 2-D case has one); with a patch, pads a volume.

    Raises `InputError`.
    """
    image = match_channels(case.image, channels)
    low, high = case_range(case, image)
    if patch:
        volume, place = padded(dataclasses.replace(case, image=image), patch)
        return CaseStack(volume, *np.full((2, len(volume)), [[low], [high]], np.float32), place)
    slices = image if case.is_volume else image[None]
    spacing = case.geometry.spacing_mm[-2:]
    squares = [letterbox(one, size=image_size, spacing_mm=spacing) for one in slices]
    ends = np.full((2, len(slices)), [[low], [high]], np.float32)
    return CaseStack(np.stack([square for square, _ in squares]), *ends, squares[0][1])


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What held-out healthy and held-out synthetic data taught; no test case ever enters.

    pixel: temperature of the pixel probabilities. image: score -> probability. healthy_scores:
    image scores of the held-out healthy cases. threshold: of the image score, and
    false_positive_rate: the rate on healthy cases that it keeps. held_out: how the confidence
    measures up on those cases and the synthetic ones made of them, for the report.
    """

    pixel: Calibration
    image: ImageCalibration
    healthy_scores: tuple[float, ...]
    threshold: float
    false_positive_rate: float
    held_out: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self):
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        found |= {"pixel": self.pixel._asdict(), "image": self.image._asdict()}
        return json.dumps(found, indent=1)

    @classmethod
    def from_json(cls, text):
        found = json.loads(text)
        found["pixel"] = Calibration(**found["pixel"])
        found["image"] = ImageCalibration(**found["image"])
        found["healthy_scores"] = tuple(found["healthy_scores"])
        return cls(**found)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a run says about one case; maps have the case's spatial shape, (H, W) or (D, H, W).

    anomaly: calibrated probability in [0, 1]. epistemic: mutual information of the label and the
    sample, in nats, at most ln 2; high where samples differ, be it by members that disagree, by
    dropout or latents, or by the std head, whose std is how ambiguous the label is (with one member
    and no dropout that is all there is). aleatoric: expected entropy in nats. std: standard
    deviation of the uncalibrated probability over all samples, what members, dropout and latents
    disagree about and the std head predicts together; its square is mean(std_m^2) + var(mean_m)
    over members (of 2 or more samples each; less where mean_m lies so near to 0 or 1 that
    `spread_samples` shortens std_m). foreground: bool. image: (..., C) as the network saw it.
    regions: the connected parts of anomaly >= 1/2, largest first. score: mean of the top share of
    the mean map, of volumes smoothed across slices, before calibration; score_std: its spread over
    all samples. uncertainty: `image_uncertainties`, such as "epistemic_top". probability:
    calibrated, that the case is abnormal. p_value: the share of held-out healthy cases that score
    as high. exceeds: whether the score is above the threshold, which is the verdict, "normal" or
    "abnormal", where that is not "abstain".
    """

    anomaly: np.ndarray
    epistemic: np.ndarray
    aleatoric: np.ndarray
    std: np.ndarray
    foreground: np.ndarray
    image: np.ndarray
    regions: list[Region]
    score: float
    score_std: float
    uncertainty: dict[str, float]
    probability: float
    p_value: float
    exceeds: bool
    verdict: str


class FinishedRun:
    """A trained and calibrated workdir, ready for `predict`."""

    def __init__(self, config, predictor, channels, decisions):
        self.config, self.channels, self.decisions = config, channels, decisions
        self._predictor = predictor

    @classmethod
    def load(cls, workdir):
        """Raises `InputError` where the workdir holds no finished training."""
        workdir = Path(workdir)
        config = read_config(workdir)
        path = workdir / "decisions.json"
        if not path.is_file():
            raise InputError(
                workdir,
                found="no decisions.json",
                expected="a finished training",
                remedy="Run python -m caal_jax.main with this --workdir to finish it.",
            )
        facts = json.loads((workdir / "training.json").read_text())
        channels = facts["channels"]
        members = read_members(workdir, config, channels)
        decisions = Decisions.from_json(path.read_text())
        return cls(config, build_predictor(config, members), channels, decisions)

    def predict(self, case):
        """A `Case` -> `Prediction`. Raises `InputError` for a constant image."""
        config, decisions = self.config, self.decisions
        stack = case_stack(
            case,
            image_size=config.image_size,
            channels=self.channels,
            patch=read_patch_size(config),
        )
        found = self._predictor.localise(stack)
        score, spread = image_scores(found, config)

        def native(maps):
            maps = stack.native(maps)
            return maps if case.is_volume else maps[0]

        uncertainty = image_uncertainties(found)
        image, inside = native(self._predictor.picture(stack, found)), native(found.foreground)
        maps = list(self._predictor.maps(decisions.pixel, found.belief))
        del found  # of a large volume each map is much memory
        anomaly, epistemic, aleatoric, std = (native(maps.pop(0)) for _ in range(4))
        regions = find_regions(
            anomaly,
            {"epistemic": epistemic, "aleatoric": aleatoric, "std": std},
            spacing_mm=case.geometry.spacing_mm,
        )
        return Prediction(
            anomaly=anomaly,
            epistemic=epistemic,
            aleatoric=aleatoric,
            std=std,
            foreground=inside if inside.dtype == bool else inside > 0.5,
            image=image,
            regions=regions,
            score=score,
            score_std=float(np.std(spread)),
            uncertainty=uncertainty,
            probability=image_probability(decisions.image, score),
            p_value=conformal_p_value(score, decisions.healthy_scores),
            exceeds=score > decisions.threshold,
            verdict=verdict(
                score, threshold=decisions.threshold, score_std=np.std(spread), z=config.abstain_z
            ),
        )


def image_uncertainties(stack):
    """`image_uncertainty` of a `Stack`'s three entropies and its std: {"entropy_mean", ...}.

    Found is what the mean map, before calibration, gives a probability of 1/2 or more.
    """
    belief, inside = stack.belief, stack.foreground
    here = belief.mean >= 0.5

    def entropy():
        if belief.predictive_entropy is not None:
            return belief.predictive_entropy
        return belief.mutual_information + belief.expected_entropy

    uncertainties = {}
    # One after the other: of a large volume each takes a good share of the memory.
    for name, take in (
        ("entropy", entropy),
        ("epistemic", lambda: belief.mutual_information),
        ("aleatoric", lambda: belief.expected_entropy),
        ("std", lambda: np.sqrt(belief.variance)),
    ):
        summary = image_uncertainty(take(), inside, found=here)
        uncertainties |= {f"{name}_{how}": value for how, value in summary.items()}
    return uncertainties


def read_members(workdir, config, channels):
    """{"params", "key"} of a trained run, stacked over members, in NumPy."""

    def template(members):
        return jax.eval_shape(lambda: new_models(config, channels, members))

    return restore_members(workdir, config, template)


def image_scores(stack, config):
    """The score of a whole `Stack`: (of its mean map, of every sample's own map (samples,)).

    Samples are reduced to histograms on the device and stay unsmoothed: their spread counts.
    """
    of_slices = jax.tree.map(lambda a: a.sum(1), stack.sketches)
    score = map_score(stack.belief.mean, stack.foreground, config)
    return score, top_share_mean(of_slices, config.score_fraction)


def map_score(maps, foreground, config):
    """The score of a case from the maps (N, S, S) and foreground of its slices.

    Volumes are first smoothed across slices, by a Gaussian of `config.score_smoothing` slices: an
    anomaly spans several of them, while the slices were judged one by one. In a run on volumes they
    were not.
    """
    if len(maps) > 1 and config.score_smoothing and not read_patch_size(config):
        maps = ndimage.gaussian_filter1d(maps, config.score_smoothing, axis=0, mode="nearest")
    return volume_score(maps, foreground, q=config.score_fraction)


def read_config(workdir):
    """The config a workdir was made with. Raises `InputError` where there is none."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise InputError(
            workdir,
            found="no config.json",
            expected="the workdir of a run",
            remedy="Pass the --workdir that training wrote to.",
        )
    try:
        return ConfigDict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise InputError(
            path,
            found=f"broken JSON ({error})",
            expected="the config of a run",
            remedy="Restore the file, or train again in a new workdir.",
        ) from error


def new_models(config, channels, members=None):
    """Untrained members stacked on the first axis: {"key", "params"}, a function of the seed.

    members: their numbers; by default all. Member m has the parameters and key that it would have
    in an ensemble of any size.
    """
    localiser = build_localiser(config)
    sides = read_patch_size(config) or (config.image_size, config.image_size)
    image = jnp.zeros((*sides, channels))

    def one(member):
        key = jax.random.fold_in(jax.random.key(config.seed), member)
        params = localiser.init(jax.random.fold_in(key, INIT_DRAW), image)
        return {"key": jax.random.key_data(key), "params": params}

    return jax.vmap(one)(jnp.array(range(config.num_members) if members is None else members))
