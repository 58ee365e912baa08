"""A contact sheet of synthetic anomalies: real images in, one picture of all that a task does."""

import io
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from caal_jax import files
from caal_jax.data.facts import case_range, match_channels
from caal_jax.data.letterbox import letterbox
from caal_jax.data.phantom import make_volume
from caal_jax.data.readers import FORMATS, image_files, read_image, stem_of, without_masks
from caal_jax.errors import InputError
from caal_jax.preprocess.prepare import prepare
from caal_jax.synthesis import TASKS, Anomaly, jitter_source
from caal_jax.synthesis.guidance import guide

SIZE = 256  # pixels a side of every picture
PHANTOM_SIZE = 96
PREPARATION = {"equalise_foreground": True, "foreground_threshold": 0.05}
COLUMNS = ("target", "source", "result", "label", "label std", "result - target")


class Picture(NamedTuple):
    """A square image of raw values (S, S, C), its intensity range, and what to call it."""

    raw: np.ndarray
    low: float
    high: float
    name: str


def contact_sheet(tasks, source, output, *, equalise="preprocess", seed=0, num=4):
    """Writes the sheet and returns its path.

    tasks: names of `TASKS`, or ["all"]; source: a file, a folder, or None for the phantom.
    Raises: InputError for an unknown task, an unusable input, or an output that is no PNG.
    """
    output = Path(output)
    if output.suffix.lower() != ".png" or output.is_dir():
        raise InputError(
            f"--output {output}",
            found="a folder" if output.is_dir() else f"the suffix {output.suffix!r}",
            expected="the name of a .png file",
            remedy="Correct it.",
        )
    tasks = list(TASKS) if tasks == ["all"] else tasks
    for task in tasks:
        if task not in TASKS:
            raise InputError(
                "--task",
                found=repr(task),
                expected=f"one or more of {', '.join(TASKS)}; or all",
                remedy="Correct it.",
            )
    if source is None:
        origin, pictures = "the built-in phantom, no scan", phantom_pictures(num + 1, seed)
    else:
        origin, pictures = Path(source).name, read_pictures(source, num + 1, seed)
    targets, sources, foregrounds, names = pair_up(pictures, num, seed, equalise)
    rows = []
    for task in tasks:
        made = corrupt(task, targets, sources, foregrounds, seed, equalise)
        for k, name in enumerate(names):
            anomaly = Anomaly(*(part[k] for part in made))
            rows.append((f"{task}\n{name[:28]}", targets[k], sources[k], anomaly))
    files.folder(output.parent)
    title = f"{origin}; equalise={equalise}, seed={seed}"
    return files.write_bytes(output, draw_sheet(rows, title))


def read_pictures(source, count, seed):
    """Up to `count` pictures of a file or folder: middle slices, or several of a lone volume.

    Files of a folder are taken in an order that the seed draws, masks left out; those that cannot
    be read are told and passed over. Raises: InputError if there is no picture at all.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(
            source,
            found="nothing",
            expected=f"an image, a volume or a folder of them ({FORMATS})",
            remedy="Check --input.",
        )
    paths = [source]
    if source.is_dir():
        paths = without_masks(image_files(source))
        paths = [paths[k] for k in np.random.default_rng(seed).permutation(len(paths))]
    pictures, skipped = [], []
    for path in paths:
        try:
            wanted = count if len(paths) == 1 else 1
            pictures += cut_pictures(read_image(path), stem_of(path), wanted)
        except InputError as error:
            print(f"skipped: {error}", file=sys.stderr)
            skipped.append(path)
        if len(pictures) >= count:
            break
    if not pictures:
        raise InputError(
            source,
            found=f"{len(skipped)} unusable image file(s)" if skipped else "no image",
            expected="at least one image",
            remedy="Check --input, or repair the files.",
        )
    return pictures


def phantom_pictures(count, seed):
    """Middle slices of `count` made-up brains."""
    pictures = []
    for number in range(count):
        volume = make_volume([seed, number], region="brain", size=PHANTOM_SIZE)
        middle = np.rot90(volume[:, :, PHANTOM_SIZE // 2, np.newaxis])  # the face on top
        square, _ = letterbox(middle, size=SIZE, spacing_mm=(1.0, 1.0))
        pictures.append(Picture(square, 0.0, 1.0, f"phantom {number}"))
    return pictures


def cut_pictures(case, name, count):
    """A 2-D case as one picture; of a volume, `count` slices of its middle half."""
    low, high = case_range(case, case.image)
    slices, numbers = [case.image], [None]
    if case.is_volume:
        depth = len(case.image)
        numbers = np.linspace(depth / 4, 3 * depth / 4, count + 2)[1:-1].astype(int)
        slices = [case.image[number] for number in numbers]
    squares = [
        letterbox(one, size=SIZE, spacing_mm=case.geometry.spacing_mm[-2:])[0] for one in slices
    ]
    names = [name if number is None else f"{name}, slice {number}" for number in numbers]
    return [Picture(square, low, high, n) for square, n in zip(squares, names, strict=True)]


def pair_up(pictures, count, seed, equalise):
    """`count` prepared targets, sources and foregrounds (N, ...), and the targets' names.

    The source of a picture is the next one; a lone picture is its own, flipped, shifted and with
    other intensities (`jitter_source`).
    """
    channels = pictures[0].raw.shape[-1]
    raw = np.stack([match_channels(p.raw, channels).astype(np.float32) for p in pictures])
    low, high = (
        np.array([getattr(p, end) for p in pictures], np.float32) for end in ("low", "high")
    )
    ready = jax.jit(jax.vmap(lambda *args: prepare(*args, equalise=equalise, **PREPARATION)))
    images, foregrounds = map(np.asarray, ready(raw, low, high))
    targets = np.arange(count) % len(pictures)
    sources = images[(targets + 1) % len(pictures)]
    if len(pictures) == 1:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), count), count)
        sources = np.asarray(jax.jit(jax.vmap(jitter_source))(keys, sources))
    names = [pictures[k].name for k in targets]
    return images[targets], sources, foregrounds[targets], names


def corrupt(task, targets, sources, foregrounds, seed, equalise):
    """One `Anomaly` per pair, stacked, in NumPy."""

    def once(key, target, source, foreground):
        return TASKS[task](key, target, source, foreground=foreground)

    keys = jax.random.split(jax.random.key(seed), len(targets))
    guided = jax.vmap(guide(once, equalise, **PREPARATION))
    # Optimising a program that runs once takes longer than running it.
    guided = jax.jit(guided, compiler_options={"xla_backend_optimization_level": 0})
    return Anomaly(*map(np.asarray, guided(keys, targets, sources, foregrounds)))


def draw_sheet(rows, title):
    """PNG bytes. rows: (name, target, source, anomaly) each."""
    width, height = 1.6 * len(COLUMNS) + 0.4, 1.75 * len(rows) + 0.6
    figure = Figure((width, height), dpi=110)
    axes = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
    figure.subplots_adjust(
        0.4 / width, 0.2 / height, 1 - 0.1 / width, 1 - 0.5 / height, wspace=0.06, hspace=0.12
    )
    for line, (name, target, source, anomaly) in zip(axes, rows, strict=True):
        change = (anomaly.image - target).mean(-1)
        # Light grey below 0, dark above; a change of a tenth is always to be seen.
        reach = max(0.1, np.abs(change).max())
        spread = anomaly.label_std[..., 0]
        for axis, values, limits, colours in (
            (line[0], target, (0, 1), "gray"),
            (line[1], source, (0, 1), "gray"),
            (line[2], anomaly.image, (0, 1), "gray"),
            (line[3], anomaly.label, (0, 1), "magma"),
            (line[4], spread, (0, max(0.05, spread.max())), "magma"),
            (line[5], change, (-reach, reach), "RdBu_r"),
        ):
            if values.ndim == 3 and values.shape[-1] != 3:
                values = values[..., 0]
            axis.imshow(np.clip(values, *limits), colours, vmin=limits[0], vmax=limits[1])
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, fontsize=7)
        line[4].set_xlabel(f"up to {spread.max():.2f}", fontsize=6, labelpad=2)
        line[5].set_xlabel(f"blue -{reach:.2f}, red +{reach:.2f}", fontsize=6, labelpad=2)
    for axis, column in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(column, fontsize=8)
    figure.suptitle(title, fontsize=9, y=1 - 0.1 / height, va="top")
    page = io.BytesIO()
    figure.savefig(page, format="png")
    return page.getvalue()
