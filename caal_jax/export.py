"""The binary that ships a finished run as one file, without this package.

python -m caal_jax.export --workdir=DIR --output=DIR
"""

import functools
import importlib.metadata
import itertools
import json
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from caal_jax import exported, files
from caal_jax.confidence import belief as beliefs
from caal_jax.confidence.calibration import apply
from caal_jax.confidence.sketch import sketch
from caal_jax.confidence.views import read_views
from caal_jax.data import is_phantom
from caal_jax.errors import InputError
from caal_jax.localise import (
    FinishedRun,
    build_prepare,
    build_sample,
    read_members,
)
from caal_jax.report.tables import stamp_of
from caal_jax.windows import read_patch_size

PLATFORMS = ("cpu", "cuda", "tpu")
ARTEFACT, LOADER, CARD = "model.jaxexport", "load_model.py", "model_card.md"
MAIN_METRICS = {
    "pixel": ("ap", "prevalence", "auroc", "aupro", "best_dice", "fpr95"),
    "image": ("ap", "prevalence", "auroc"),
    "confidence": ("ece", "brier", "nll", "aurc", "error_auroc"),
}
_exactly = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def export(workdir, output):
    """Writes model.jaxexport, load_model.py and model_card.md; returns the artefact's path.

    The artefact takes cases of any number, size and depth on CPU, CUDA and TPU, and answers what
    `FinishedRun.predict` does: see `build_model`. Raises: InputError without a finished run, or for
    one on volumes, whose windows no single program holds.
    """
    run = FinishedRun.load(workdir)
    if read_patch_size(run.config):
        raise InputError(
            workdir,
            found=f"a run on volumes, in patches of {run.config.patch_size}",
            expected="a run on slices",
            remedy="Use caal_jax.predict for volumes, or train with --config.patch_size= empty.",
        )
    members = read_members(workdir, run.config, run.channels)
    batch, slices, height, width = jax.export.symbolic_shape("b, n, h, w")
    arguments = (
        jax.ShapeDtypeStruct((batch, slices, height, width, run.channels), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.bool_),
    )
    model = jax.jit(build_model(run, members))
    artefact = jax.export.export(model, platforms=PLATFORMS)(*arguments).serialize()
    output = files.folder(output)
    files.write_text(output / LOADER, Path(exported.__file__).read_text())
    files.write_text(output / CARD, model_card(run, Path(workdir)))
    return files.write_bytes(output / ARTEFACT, artefact)


def build_model(run, members):
    """A `FinishedRun` and its stacked members as one pure function of B cases of N slices.

    images: (B, N, H, W, C) float32 in the file's grey levels; low, high: (B,) their robust ranges;
    spacing_mm: (2,), of rows and columns; is_integer: whether the file held integers, which
    resizing rounds to. Returns a dict: anomaly, epistemic, aleatoric, foreground (B, N, H, W);
    score, score_std, probability, p_value (B,); verdict (B,): 0 normal, 1 abnormal, 2 abstain.
    The meaning of each is that of `localise.Prediction`.
    """
    config, decisions = run.config, run.decisions
    sample, prepare = build_sample(config), jax.vmap(build_prepare(config))
    views = read_views(config.get("augment", "none"))
    each = [jax.tree.map(lambda a, i=m: a[i], members) for m in range(config.num_members)]
    healthy = jnp.asarray(decisions.healthy_scores, jnp.float32)

    def model(images, low, high, spacing_mm, is_integer):
        cases, slices, height, width, channels = images.shape
        raw = images.reshape(-1, height, width, channels)
        box = place(height, width, spacing_mm, config.image_size)
        square = to_square(raw, box, config.image_size, is_integer)
        image, foreground = prepare(square, jnp.repeat(low, slices), jnp.repeat(high, slices))

        def by_case(array, axis=0):
            shape = array.shape
            return array.reshape(*shape[:axis], cases, slices, *shape[axis + 1 :])

        sums, sketches = [], []
        for member, view in itertools.product(each, views):
            samples = sample(member, view, image)
            drawn = jax.vmap(jax.vmap(sketch), (0, None))(samples, foreground)
            sums.append(beliefs.accumulate(samples))
            sketches.append(jax.tree.map(lambda a: by_case(a, 1).sum(2), drawn))
        belief = beliefs.belief(jax.tree.map(lambda *a: sum(a), *sums))
        spread = jax.tree.map(lambda *a: jnp.concatenate(a), *sketches)

        def native(maps):
            return by_case(from_square(maps[..., 0], box, height, width))

        score = map_score(by_case(belief.mean[..., 0]), by_case(foreground[..., 0]), config)
        score_std = jnp.std(top_share_means(spread, config.score_fraction), axis=0)
        at_least = (healthy[None] >= score[:, None]).sum(1)
        return {
            "anomaly": native(apply(decisions.pixel, belief.mean)),
            "epistemic": native(belief.mutual_information),
            "aleatoric": native(belief.expected_entropy),
            "foreground": native(foreground.astype(jnp.float32)) > 0.5,
            "score": score,
            "score_std": score_std,
            "probability": jax.nn.sigmoid(
                decisions.image.slope * score + decisions.image.intercept
            ),
            "p_value": (1 + at_least) / (len(decisions.healthy_scores) + 1),
            "verdict": verdicts(
                score, score_std, threshold=decisions.threshold, z=config.abstain_z
            ),
        }

    return model


def place(height, width, spacing_mm, size):
    """`data.letterbox.placement` of traced sizes: (top, rows), (left, columns), int32 scalars."""
    sides = jnp.stack([jnp.asarray(height), jnp.asarray(width)]) * spacing_mm
    filled = jnp.clip(jnp.round(sides / (sides.max() / size)), 1, size).astype(jnp.int32)
    return [((size - length) // 2, length) for length in filled]


def to_square(images, box, size, is_integer):
    """`data.letterbox.letterbox` of (N, H, W, C) float32, as two products of matrices."""
    lowest = images.min((1, 2, 3), keepdims=True)
    pixel = jnp.arange(size)
    inside = [(pixel >= start) & (pixel < start + length) for start, length in box]
    for product, (start, length), axis in zip(("sh,nhwc", "sw,nhwc"), box, (1, 2), strict=True):
        weights = stretch(pixel - start, length, images.shape[axis])
        out = product.split(",")[1].replace(product[1], "s")
        images = _exactly(f"{product}->{out}", weights, images)
        images = jnp.where(is_integer, jnp.round(images), images)
    return jnp.where((inside[0][:, None] & inside[1][None])[None, ..., None], images, lowest)


def from_square(maps, box, height, width):
    """`data.letterbox.unletterbox` of (N, S, S) float32: (N, H, W)."""
    pixel = jnp.arange(maps.shape[1])[None]
    weights = [
        interpolation(jnp.arange(side), jnp.asarray(side), pixel - start, length)
        for (start, length), side in zip(box, (height, width), strict=True)
    ]
    return _exactly("hr,nrc,wc->nhw", weights[0], maps, weights[1])


def stretch(target, length, count):
    """Weights (T, count) of a side of `count` pixels at pixels `target` (T,) of one of `length`.

    Averages over areas where it shrinks, else linear: OpenCV's INTER_AREA and INTER_LINEAR, with
    integer numerators, as the float32 product of a position and a scale would be too coarse.
    """
    pixel, count = jnp.arange(count)[None], jnp.asarray(count)
    row = target[:, None]
    ends = jnp.minimum((row + 1) * count, (pixel + 1) * length)
    overlap = jnp.clip(ends - jnp.maximum(row * count, pixel * length), 0)
    return jnp.where(length < count, overlap / count, interpolation(target, length, pixel, count))


def interpolation(target, length, pixel, count):
    """Linear weights (T, P) of pixels `pixel` (1, P) of a side of `count` at `target` (T,)."""
    position = (2 * target[:, None] + 1) * count - length
    position = jnp.clip(position, 0, 2 * length * (count - 1))
    near = 2 * length - jnp.abs(position - 2 * length * pixel)
    return jnp.clip(near, 0) / (2 * length)


def map_score(maps, foreground, config):
    """`localise.map_score` of cases (B, N, S, S) -> (B,)."""
    slices = maps.shape[1]
    if config.score_smoothing:
        reach = int(4 * config.score_smoothing + 0.5)
        steps = np.arange(-reach, reach + 1)
        weights = np.exp(-0.5 * (steps / config.score_smoothing) ** 2)
        here = jnp.arange(slices)
        seen = jnp.clip(here[:, None] + steps[None], 0, slices - 1)[..., None] == here[None, None]
        blur = jnp.einsum("ikj,k->ij", seen.astype(jnp.float32), weights / weights.sum())
        maps = _exactly("ij,bjrc->birc", blur, maps)
    ranked = -jnp.sort(jnp.where(foreground, -maps, jnp.inf).reshape(maps.shape[0], -1), axis=1)
    wanted = jnp.ceil(config.score_fraction * foreground.sum((1, 2, 3)))[:, None]
    kept = jnp.arange(ranked.shape[1])[None] < wanted
    return jnp.where(kept, ranked, 0.0).sum(1) / jnp.maximum(wanted[:, 0], 1)


def verdicts(score, score_std, *, threshold, z):
    """`confidence.decision.verdict` of cases (B,): 0 normal, 1 abnormal, 2 abstain."""
    margin = score - threshold
    return jnp.where(jnp.abs(margin) < z * score_std, 2, jnp.where(margin > 0, 1, 0))


def top_share_means(summary, fraction):
    """`confidence.sketch.top_share_mean` of traced sketches (..., bins) -> (...)."""
    count, total = summary.count[..., ::-1], summary.total[..., ::-1]
    wanted = fraction * count.sum(-1, keepdims=True)
    before = jnp.cumsum(count, -1) - count
    share = jnp.clip((wanted - before) / jnp.maximum(count, 1e-12), 0.0, 1.0)
    return (share * total).sum(-1) / jnp.maximum(wanted[..., 0], 1e-12)


def model_card(run, workdir):
    """What a stranger needs to know of a run, in Markdown."""
    config, decisions = run.config, run.decisions
    path = workdir / "metrics.json"
    results = json.loads(path.read_text()) if path.is_file() else None
    unknown = {"name": config.dataset, "is_phantom": is_phantom(config)}
    data = results["data"] if results else unknown
    trained_on = "the built-in phantom: made-up images" if data["is_phantom"] else data["name"]
    rate = f"{decisions.false_positive_rate:.1%}"
    return "\n".join(
        [
            f"# Model card: anomaly localiser, trained on {data['name']}",
            "",
            "Research software; **not for clinical use**.",
            "",
            "## What it is",
            "",
            f"{config.num_members} x `{config.localiser}`, trained by the synthetic task"
            f" `{config.task}` on healthy images alone: {trained_on}. Intensity range, histogram"
            f" equalisation (`{config.equalise}`), resizing to {config.image_size} x"
            f" {config.image_size} pixels, ensemble, calibration and threshold are inside.",
            "",
            *(f"- {name}: {value}" for name, value in facts(run, data)),
            "",
            "## Use",
            "",
            "```python",
            "from load_model import load",
            "",
            f'predict = load("{ARTEFACT}")',
            f"found = predict(images, spacing_mm=(1, 1))  # images: (B, N, H, W, {run.channels})",
            "```",
            "",
            f"`pip install jax flatbuffers numpy`. Made for {', '.join(PLATFORMS)}; written by jax"
            f" {jax.__version__}, which promises to read it for at least six months of later"
            " versions. Give grey levels and data type as they are in the file, slices cut"
            " along the same axis as in training. Answers:"
            " `anomaly` (calibrated probability per pixel), `epistemic` and `aleatoric`"
            " (uncertainty in nats), `foreground`, `score`, `score_std`, `probability`, `p_value`"
            " and `verdict` (normal, abnormal or abstain).",
            "",
            "## Results on the test split",
            "",
            *(result_lines(results) if results else ["This run was exported before evaluation."]),
            "",
            "## Rule of the threshold",
            "",
            f"Set on {len(decisions.healthy_scores)} held-out healthy cases, where it keeps a"
            f" false-positive rate of {rate}; calibrated on held-out healthy images and synthetic"
            " anomalies. No test case was used.",
            "",
            "## Intended use and limits",
            "",
            "- Research on finding what differs from the healthy training images, in images of the"
            " same kind, region, device and preprocessing.",
            "- Whatever differs is an anomaly to it, harmless or not; what resembles healthy tissue"
            " is missed. Other scanners, protocols or ages raise scores without any disease.",
            "- Probabilities are calibrated for synthetic anomalies; real ones may differ.",
            "- The score says how unlike healthy an image is, never what it shows.",
            "",
        ]
    )


def facts(run, data):
    """Rows of the card: (name, value)."""
    config = run.config
    yield "seed, steps, batch size", f"{config.seed}, {config.num_steps}, {config.batch_size}"
    for key, name in (("num_train", "training cases"), ("num_test", "test cases")):
        if key in data:
            yield name, data[key]
    yield "caal_jax", importlib.metadata.version("caal_jax")


def result_lines(results):
    """The main metrics with their intervals as a Markdown table, and what to know about them."""
    stamp, sentence = stamp_of(results)
    lines = [f"**{stamp.upper()}**: {sentence}", ""] if stamp else []
    lines += ["| metric | value | 95 % interval |", "| --- | --- | --- |"]
    for section, names in MAIN_METRICS.items():
        found = results.get(section, {})
        for name in names:
            if found.get(name) is not None:
                ends = found.get(f"{name}_ci95") or [None, None]
                shown = "" if None in ends else f"{ends[0]:.3f} to {ends[1]:.3f}"
                lines.append(f"| {section} {name} | {found[name]:.3f} | {shown} |")
    return [*lines, "", *(f"- {note}" for note in results["data"].get("notes", ()))]


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; options start with --")
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of its work at INFO
    try:
        path = export(flags.FLAGS.workdir, flags.FLAGS.output)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB), with {LOADER} and {CARD} beside it")


if __name__ == "__main__":
    # Here, as notebooks import this module beside other binaries with flags of these names.
    flags.DEFINE_string("workdir", None, "The workdir of a finished run.")
    flags.DEFINE_string("output", None, "The folder for the artefact, its loader and card.")
    flags.mark_flags_as_required(["workdir", "output"])
    app.run(main)
