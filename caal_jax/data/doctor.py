"""The doctor: a data set in, what it holds and every problem in it out."""

import dataclasses
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from caal_jax import files
from caal_jax.data import load_dataset
from caal_jax.data.arrays import times
from caal_jax.data.case import DataSet
from caal_jax.data.dicom import patient_id
from caal_jax.data.facts import match_channels
from caal_jax.data.fingerprint import Seen
from caal_jax.data.folder import case_ids
from caal_jax.data.letterbox import letterbox
from caal_jax.data.readers import file_entry, image_files, stem_of, suffix_of
from caal_jax.data.table import read_lines
from caal_jax.errors import InputError
from caal_jax.files import printable

NUM_LEVELS = 65  # quantiles kept of each case
NUM_PICTURES = 40  # in the contact sheet, at most
PICTURE_PX = 128
SHOWN = 5  # sizes, spacings and left-over files named in the summary


class Problem(NamedTuple):
    """level: "error" or "warning"; where: a file, a case or the data set; what: one sentence."""

    level: str
    where: str
    what: str


class CaseFacts(NamedTuple):
    """shape: without channels; levels: (NUM_LEVELS,) quantiles of the intensities."""

    split: str
    shape: tuple[int, ...]
    dtype: str
    channels: int
    spacing_mm: tuple[float, ...]
    levels: np.ndarray


@dataclasses.dataclass
class Findings:
    """What the doctor found. facts: of each readable case; pictures: (title, RGB) of some."""

    name: str
    counts: dict[str, int]
    notes: list[str] = dataclasses.field(default_factory=list)
    facts: list[CaseFacts] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    pictures: list[tuple[str, np.ndarray]] = dataclasses.field(default_factory=list)

    def add(self, level, where, what):
        self.problems.append(Problem(level, printable(str(where)), what))

    def refused(self, error):
        """Notes an `InputError`."""
        self.add(
            "error", error.where, f"found {error.found}; expected {error.expected}. {error.remedy}"
        )

    @property
    def num_errors(self):
        return sum(problem.level == "error" for problem in self.problems)


def examine(config):
    """Reads every case of a config's data set; returns `Findings` and never stops at a problem."""
    refusals = []
    try:
        dataset = load_dataset(config)
    except InputError as error:
        refusals = _all_refusals(config, error)
        dataset = _unsorted(config)
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    if refusals:
        splits = {"files": dataset.train}
    findings = Findings(
        name=dataset.name,
        counts={split: len(entries) for split, entries in splits.items()},
        notes=list(dataset.notes),
    )
    for error in refusals:
        findings.refused(error)
    total = sum(findings.counts.values())
    shown = set(np.linspace(0, total - 1, min(NUM_PICTURES, total)).round().astype(int))
    records = {split: Seen() for split in splits}
    with tqdm(total=total, desc="checking", unit="case") as bar:
        for split, entries in splits.items():
            for entry in records[split].watch(entries):
                _check_case(findings, split, entry, bar.n in shown)
                bar.update()
    _check_names(findings, splits)
    _check_leaks(findings, records)
    _check_dicom_patients(findings, splits)
    _check_unity(findings)
    _check_colours(findings, config)
    root = Path(config.data_dir)
    if config.data_dir and root.is_dir():
        used = {path for part in splits.values() for entry in part for path in entry.paths}
        _check_left_over(findings, root, used)
    return findings


def _all_refusals(config, error):
    """The error that stopped loading, or all of a table's."""
    path = Path(config.data_dir)
    if path.suffix.lower() == ".csv" and path.is_file():
        try:
            return read_lines(path)[1] or [error]
        except InputError:
            pass
    return [error]


def _unsorted(config):
    """What can be checked of a data set that does not load: each file, of no split."""
    root = Path(config.data_dir)
    entries = []
    try:
        if config.data_dir and root.is_dir():
            paths = image_files(root)
            ids = case_ids(paths, root)
            entries = [file_entry(path, case_id=ids[path], patient="") for path in paths]
    except InputError:
        pass  # a folder that cannot be opened; it is among the left-over files
    return DataSet(name=printable(root.name), train=entries, validation=[], test=[])


def _check_case(findings, split, entry, show):
    try:
        case = entry.load()
    except InputError as error:
        findings.refused(error)
        return
    image, where = case.image, entry.paths[0] if entry.paths else case.case_id
    if image.min() == image.max():
        findings.add("warning", where, f"is {image.min():g} everywhere, and will be skipped.")
        return
    if image.shape[-1] not in (1, 3):
        findings.add("error", where, f"has {image.shape[-1]} channels; expected 1 or 3.")
        return
    has_mask = case.mask is not None and case.mask.any()
    if case.label == 0 and has_mask:
        findings.add("error", where, "is listed as normal, but its mask is not empty.")
    if case.label and case.mask is not None and not has_mask:
        findings.add("error", where, "is listed as abnormal, but its mask is empty.")
    if case.label and has_mask and case.mask.all():
        findings.add("warning", where, "has a mask that covers the whole image.")
    if min(image.shape[-3:-1]) < 16:
        findings.add("warning", where, f"has only {times(image.shape[:-1])} pixels.")
    values = image.reshape(-1)
    sample = values[:: (values.size // 2**16) | 1]
    findings.facts.append(
        CaseFacts(
            split=split,
            shape=image.shape[:-1],
            dtype=image.dtype.name,
            channels=image.shape[-1],
            spacing_mm=tuple(round(mm, 3) for mm in case.geometry.spacing_mm),
            levels=np.quantile(sample, np.linspace(0, 1, NUM_LEVELS)),
        )
    )
    if show:
        findings.pictures.append((f"{split}\n{case.case_id[-24:]}", _picture(case)))


def _picture(case):
    """(PICTURE_PX, PICTURE_PX, 3) uint8: the middle slice, or that with most truth, outlined."""
    image, mask = case.image, case.mask
    if case.is_volume:
        at = len(image) // 2
        if mask is not None and mask.any():
            at = int(mask.sum(axis=(1, 2)).argmax())
        image, mask = image[at], None if mask is None else mask[at]
    low, high = np.percentile(image, (0.5, 99.5))
    grey = np.clip((image - low) / max(high - low, 1e-9), 0, 1).astype(np.float32)
    how = {"size": PICTURE_PX, "spacing_mm": case.geometry.spacing_mm[-2:]}
    square = np.uint8(255 * match_channels(letterbox(grey, **how)[0], 3))
    if mask is not None and mask.any():
        inside, _ = letterbox(mask.astype(np.float32)[..., None], **how)
        outline, _ = cv2.findContours(
            np.uint8(inside[..., 0] > 0.5), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        square = np.ascontiguousarray(square)
        for colour, width in (((0, 0, 0), 3), ((255, 176, 0), 1)):
            cv2.drawContours(square, outline, -1, colour, width)
    return square


def _check_names(findings, splits):
    for split, entries in splits.items():
        for name, count in Counter(entry.case_id for entry in entries).items():
            if count > 1:
                findings.add("error", name, f"is the name of {count} cases in {split}.")


def _check_leaks(findings, records):
    """The same patient or picture in two splits."""
    names = list(records)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            for patient in records[first].shared_patients(records[second]):
                findings.add("error", f"patient {patient}", f"is in {first} and in {second}.")
            for ours, theirs, correlation in records[first].look_alikes(records[second]):
                findings.add(
                    "error",
                    theirs,
                    f"of {second} looks like {ours} of {first} (correlation {correlation:.2f}): "
                    "near-duplicates must be in one split.",
                )


def _check_dicom_patients(findings, splits):
    """The same patient in two splits by the headers of DICOM files, whatever the folders say."""
    first_seen, twice = {}, []
    for split, entries in splits.items():
        for entry in entries:
            path = entry.paths[0] if entry.paths else None
            if (
                path is None
                or suffix_of(path) not in ("", ".dcm")
                or not (name := patient_id(path))
            ):
                continue
            earlier = first_seen.setdefault(name, (split, path))
            if earlier[0] != split:
                twice.append((path, split, *earlier))
    # One name for everybody is what careless anonymisation leaves.
    if len(first_seen) > 1:
        for path, split, other_split, other in twice:
            findings.add(
                "error",
                path,
                f"of {split} has the patient id of {printable(other.name)} in {other_split}.",
            )


def _check_unity(findings):
    """Differences between cases that are legal and often an accident."""
    for what, values in {
        "grey and colour images": [fact.channels for fact in findings.facts],
        "images and volumes": [len(fact.shape) for fact in findings.facts],
        "data types": [fact.dtype for fact in findings.facts],
    }.items():
        counts = Counter(values)
        if len(counts) > 1:
            told = ", ".join(f"{count} x {value}" for value, count in counts.most_common())
            if what != "data types":
                told = " and ".join(str(count) for _, count in counts.most_common())
            findings.add("warning", "the data set", f"mixes {what} ({told}).")


def _check_colours(findings, config):
    """Photographs whose colours the config is about to change."""
    channels = {fact.channels for fact in findings.facts}
    if config.dataset == "folder" and channels == {3} and config.get("equalise") == "preprocess":
        findings.add(
            "warning",
            "the data set",
            "is in colour, and config.equalise changes colours, channel by channel. For "
            "photographs add --config.equalise=none here and when training.",
        )


def _check_left_over(findings, root, used):
    """Files below the data folder that no case reads, hidden ones aside."""
    used = {os.path.abspath(path) for path in used}
    images, others = [], Counter()
    inside = root.resolve()

    def refuse(error):
        findings.add("error", error.filename, f"cannot be opened ({error.strerror}).")

    for parent, folders, names in os.walk(root, onerror=refuse):
        try:
            os.stat(os.path.join(parent, "."))  # names can be listed where files cannot be reached
        except OSError as error:
            refuse(error)
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if Path(parent, name).is_symlink():
                findings.add("warning", Path(parent, name), "is a link to a folder: not followed.")
        for name in names:
            path = Path(parent, name)
            if name.startswith(".") or {os.path.abspath(path), os.path.abspath(parent)} & used:
                continue
            if path.is_symlink() and not path.exists():
                findings.add("error", path, "is a link to nothing, or in a circle.")
            elif not path.resolve().is_relative_to(inside):
                findings.add("error", path, "is a link out of the data folder: left out.")
            elif suffix_of(path):
                images.append(path)
            else:
                others[path.suffix or "no suffix"] += 1
    _check_unused_images(findings, root, images, used)
    if others:
        told = ", ".join(f"{count} x {suffix}" for suffix, count in others.most_common(SHOWN))
        findings.notes.append(f"{sum(others.values())} files are no images: {told}.")


def _check_unused_images(findings, root, images, used):
    stems = {stem_of(path) for path in used}
    unused = []
    for path in images:
        image = stem_of(path).rpartition("_mask")[0]
        if image and image not in stems:
            findings.add("error", path, "is a mask without an image.")
        elif not image:
            unused.append(path)
    if unused:
        told = ", ".join(printable(str(path.relative_to(root))) for path in unused[:SHOWN])
        more = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        findings.add("warning", root, f"{len(unused)} images are in no split: {told}{more}.")


def summary(findings):
    """The findings as text."""
    lines = [f"{findings.name}: {_told(findings.counts)}"]
    for split in findings.counts:
        facts = [fact for fact in findings.facts if fact.split == split]
        if not facts:
            continue
        levels = np.stack([fact.levels for fact in facts])
        lines += [
            f"{split}: {len(facts)} readable",
            f"  size      {sizes([fact.shape for fact in facts])}",
            f"  spacing   {_most([times_mm(fact.spacing_mm) for fact in facts])}",
            f"  type      {_most([f'{f.dtype}, {f.channels} channel(s)' for f in facts])}",
            f"  intensity {levels.min():g} to {levels.max():g}, median "
            f"{np.median(levels[:, NUM_LEVELS // 2]):g}",
        ]
    lines += [f"note: {note}" for note in findings.notes]
    lines += [f"{level}: {where}: {what}" for level, where, what in findings.problems]
    num_warnings = len(findings.problems) - findings.num_errors
    lines.append(f"{findings.num_errors} errors, {num_warnings} warnings")
    return "\n".join(lines)


def sizes(shapes):
    """The few sizes there are, or the range along each axis."""
    if len(set(shapes)) <= SHOWN or len(set(map(len, shapes))) > 1:
        return _most([times(shape) for shape in shapes])
    axes = [sorted(sides) for sides in zip(*shapes, strict=True)]
    told = " x ".join(f"{sides[0]} to {sides[-1]}" for sides in axes)
    return f"{told} ({len(set(shapes))} different ones)"


def times_mm(spacing):
    """0.5 x 0.5 mm; readers say 1 where a format has no spacing."""
    if set(spacing) == {1.0}:
        return "none given, or 1 mm"
    return " x ".join(f"{mm:g}" for mm in spacing) + " mm"


def _told(counts):
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _most(values):
    counts = Counter(values)
    told = ", ".join(f"{value} ({count})" for value, count in counts.most_common(SHOWN))
    return told + (f" and {len(counts) - SHOWN} others" if len(counts) > SHOWN else "")


def write_findings(findings, output):
    """check.json and check.png into a folder."""
    output = files.folder(output)
    facts = [{**fact._asdict(), "levels": fact.levels.tolist()} for fact in findings.facts]
    report = {
        "name": findings.name,
        "counts": findings.counts,
        "notes": findings.notes,
        "problems": [problem._asdict() for problem in findings.problems],
        "cases": facts,
    }
    files.write_text(output / "check.json", json.dumps(report, indent=1))
    files.write_bytes(output / "check.png", draw(findings))


def draw(findings):
    """PNG bytes: the intensities of each split, and a contact sheet."""
    columns = 8
    rows = -(-len(findings.pictures) // columns)
    figure = Figure((12, 2.6 + 1.65 * rows), dpi=100)
    grid = figure.add_gridspec(
        rows + 1,
        columns,
        height_ratios=[1.3, *[1] * rows],
        hspace=0.35,
        wspace=0.06,
        left=0.06,
        right=0.99,
        top=1 - 0.35 / figure.get_figheight(),
        bottom=0.01,
    )
    axis = figure.add_subplot(grid[0, :])
    pool = np.ravel([fact.levels for fact in findings.facts] or [0.0])
    # A few outliers would squeeze everything else into one bin.
    bins = np.linspace(*np.percentile(pool, (0.5, 99.5)), 101)
    for split in findings.counts:
        levels = [fact.levels for fact in findings.facts if fact.split == split]
        if levels:
            axis.hist(
                np.ravel(levels),
                bins,
                density=True,
                histtype="step",
                label=f"{split} ({len(levels)})",
            )
    axis.set(title=f"{findings.name}: intensities, every case weighs the same", yticks=[])
    if findings.facts:
        axis.legend(fontsize=8)
    for number, (title, picture) in enumerate(findings.pictures):
        axis = figure.add_subplot(grid[1 + number // columns, number % columns])
        axis.imshow(picture)
        axis.set_title(title, fontsize=6, pad=2, parse_math=False)
        axis.axis("off")
    page = io.BytesIO()
    figure.savefig(page, format="png")
    return page.getvalue()
