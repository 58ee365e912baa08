"""The training bank: every usable slice of the healthy cases, square, in memory, raw."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from caal_jax.data.ahead import read_ahead
from caal_jax.data.facts import RAW_TYPES, match_channels, slice_facts
from caal_jax.data.letterbox import letterbox
from caal_jax.data.records import RecordEntry
from caal_jax.data.spool import Spool
from caal_jax.errors import InputError


class Batch(NamedTuple):
    """B training pairs; the device does the rest.

    target, source: (B, S, S, C) raw values, the source being from another patient.
    low, high, source_low, source_high: (B,) float32 intensity ranges of their cases.
    indices: (B,) positions of the targets in the bank.
    """

    target: np.ndarray
    source: np.ndarray
    low: np.ndarray
    high: np.ndarray
    source_low: np.ndarray
    source_high: np.ndarray
    indices: np.ndarray


class RecordSlices(NamedTuple):
    """Slices of one case that stay in records: a stand-in for their array (N, S, S, C).

    records: has `read(numbers) -> examples`. numbers: (N,) of the slices in it. spacing_mm: (row,
    column).
    """

    records: Any
    numbers: np.ndarray
    spacing_mm: tuple[float, float]
    shape: tuple[int, int, int, int]
    dtype: np.dtype

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize


class RecordImages:
    """The images of a bank that stay in records: `images[indices]` reads and letterboxes them."""

    def __init__(self, slices, channels, dtype):
        """slices: `RecordSlices` of all cases, in order, of one data set."""
        self.dtype, self._records = dtype, slices[0].records
        self.shape = (sum(one.shape[0] for one in slices), *slices[0].shape[1:3], channels)
        self._numbers = np.concatenate([one.numbers for one in slices])
        lengths = [one.shape[0] for one in slices]
        self._spacing_mm = np.repeat([one.spacing_mm for one in slices], lengths, axis=0)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, indices):
        examples = self._records.read(self._numbers[indices])
        images = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for k, (index, example) in enumerate(zip(indices, examples, strict=True)):
            spacing = self._spacing_mm[index]
            square, _ = letterbox(example["image"], size=self.shape[1], spacing_mm=spacing)
            images[k] = match_channels(square, self.shape[3])
        return images


class _Part(NamedTuple):
    """What one case gives to the bank."""

    case_id: str
    patient: str
    slices: np.ndarray | RecordSlices | None  # (N, S, S, C); None while they wait in a file
    positions: np.ndarray  # (N,) in [0, 1]
    range: tuple[float, float]
    grey_range: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class SliceBank:
    """Slices of healthy cases, sorted by patient, case and position.

    images: (N, S, S, C), uint8, uint16 or int16 where every case has that type, float32 otherwise;
    `RecordImages` where they would not fit into memory.
    low, high: (N,) float32, the `intensity_range` of the whole case a slice comes from.
    positions: (N,) float32 relative position in the volume, 0 to 1; 0.5 for 2-D images.
    case_index: (N,) index into `case_ids`.
    patient_first, patient_last: (cases,) first and one past the last case of a case's patient.
    notes: one sentence each about what was left out or converted.
    """

    images: np.ndarray | RecordImages
    low: np.ndarray
    high: np.ndarray
    positions: np.ndarray
    case_index: np.ndarray
    case_ids: tuple[str, ...]
    patient_first: np.ndarray
    patient_last: np.ndarray
    notes: tuple[str, ...]

    def __len__(self):
        return len(self.images)

    @property
    def shape(self):
        """Of one slice, (S, S, C)."""
        return self.images.shape[1:]

    @classmethod
    def build(
        cls,
        entries,
        *,
        image_size,
        min_foreground=0.02,
        max_bytes=2**31,
        cache_dir=None,
        progress=None,
        min_patients=2,
        max_channels=3,
    ):
        """Loads each entry once and keeps its slices, letterboxed to image_size x image_size.

        min_foreground: slices of volumes are left out where less than this share lies above
        5 % of the case's intensity range. max_bytes: a larger bank stays in its records if the
        entries are `RecordEntry`, and lives in a memory-mapped file in `cache_dir` otherwise.
        progress: called with (done, total) after each entry.
        Cases that cannot be read or are constant are skipped with a note. If any case is grey,
        colour cases become grey, with a note; and with max_channels=1.
        Raises: InputError if fewer than min_patients remain, or if the bank is larger than
        `max_bytes` and there is no `cache_dir`.
        """
        parts, skipped, num_empty, num_bytes, spool = [], [], 0, 0, None
        stays = _record_bytes(entries, image_size, min_foreground) > max_bytes

        def read(entry):
            if stays:
                return _point(entry, image_size, min_foreground)
            return _cut(entry.load(), image_size, min_foreground)

        for done, (entry, answer) in enumerate(read_ahead(read, entries), start=1):
            try:
                part, empty = answer()
            except InputError as error:
                skipped.append(f"{entry.case_id} ({error})")
            else:
                num_empty += empty
                num_bytes += part.slices.nbytes
                if num_bytes > max_bytes and not stays:
                    # This and all later parts wait on disk until the bank stands.
                    spool = spool or Spool(_cache_folder(cache_dir, max_bytes))
                    spool.append(part.slices)
                    part = part._replace(slices=None)
                parts.append(part)
            if progress is not None:
                progress(done, len(entries))
        if spool:
            waiting = spool.close()
            for k, slices in enumerate(waiting, start=len(parts) - len(waiting)):
                parts[k] = parts[k]._replace(slices=slices)
        notes = []
        if skipped:
            notes.append(skipped_note(skipped, entries))
        if num_empty:
            notes.append(f"{num_empty} nearly empty training slices were left out.")
        if stays:
            notes.append(
                "Training slices are read from records when they are needed; near-duplicates "
                "of test images were not looked for."
            )
        check_patients([part.patient for part in parts], entries, skipped, min_patients)
        return cls._join(parts, notes, max_bytes, cache_dir, max_channels)

    @classmethod
    def _join(cls, parts, notes, max_bytes, cache_dir, max_channels):
        parts = sorted(parts, key=lambda part: part.patient)  # stable: entries keep their order
        counts = [part.slices.shape[-1] for part in parts]
        channels = min(*counts, max_channels)
        if max(counts) > channels and 1 in counts:
            num_colour = sum(count > channels for count in counts)
            notes.append(
                f"{num_colour} colour training cases, the first being "
                f"{parts[counts.index(3)].case_id}, became grey because others, such as "
                f"{parts[counts.index(1)].case_id}, are grey."
            )
        ranges = [
            part.range if count == channels else part.grey_range
            for part, count in zip(parts, counts, strict=True)
        ]
        dtypes = {part.slices.dtype for part in parts}
        keep = len(dtypes) == 1 and dtypes <= set(RAW_TYPES)
        dtype = dtypes.pop() if keep else np.dtype(np.float32)
        lengths = [part.slices.shape[0] for part in parts]
        shape = (sum(lengths), *parts[0].slices.shape[1:3], channels)
        if isinstance(parts[0].slices, RecordSlices):
            images = RecordImages([part.slices for part in parts], channels, dtype)
        else:
            images = _allocate(shape, dtype, max_bytes, cache_dir)
            start = 0
            for part, length in zip(parts, lengths, strict=True):
                images[start : start + length] = match_channels(part.slices, channels)
                start += length
        names = np.array([part.patient for part in parts])
        case_index = np.repeat(np.arange(len(parts)), lengths)
        low, high = np.array(ranges, np.float32)[case_index].T.copy()
        return cls(
            images=images,
            low=low,
            high=high,
            positions=np.concatenate([part.positions for part in parts]),
            case_index=case_index,
            case_ids=tuple(part.case_id for part in parts),
            patient_first=np.searchsorted(names, names, side="left"),
            patient_last=np.searchsorted(names, names, side="right"),
            notes=tuple(notes),
        )

    def batch(self, seed, step, batch_size, *, held_out=None, rows=None):
        """The `Batch` of a step: a pure function of (seed, step, batch_size).

        Every epoch visits each slice once in a fresh order; batches run on over its end. The
        source comes from a case of another patient, uniformly drawn: its slice at the nearest
        relative position, or the image itself for 2-D cases. held_out: a bank of other patients
        that the targets are taken from instead. rows: (batch_size,) bool; the pixels of others are
        not read but zero.
        """
        own = self if held_out is None else held_out
        targets = visits(seed, step, batch_size, len(own))
        uniform = np.random.default_rng((seed, step)).random(batch_size)
        if held_out is not None:
            cases = (uniform * len(self.case_ids)).astype(np.int64)
            sources = self.nearest(cases, held_out.positions[targets])
        else:
            sources = self._partners(targets, uniform)
        return Batch(
            target=read_rows(lambda numbers: own.images[numbers], rows, targets),
            source=read_rows(lambda numbers: self.images[numbers], rows, sources),
            low=own.low[targets],
            high=own.high[targets],
            source_low=self.low[sources],
            source_high=self.high[sources],
            indices=targets,
        )

    def _partners(self, targets, uniform):
        """Slices of other patients for targets (B,); uniform (B,) in [0, 1) picks the cases."""
        own = self.case_index[targets]
        first, last = self.patient_first[own], self.patient_last[own]
        cases = other_patients(uniform, first, last, len(self.case_ids))
        return self.nearest(cases, self.positions[targets])

    def nearest(self, cases, positions):
        """Indices (B,) of the slices of `cases` (B,) nearest to relative `positions` (B,)."""
        # Cases two apart on one line, so that one sorted search finds all neighbours.
        wanted = 2 * cases + positions
        after = np.searchsorted(self._line, wanted)
        starts, ends = np.searchsorted(self.case_index, [cases, cases + 1])
        before, after = np.clip([after - 1, after], starts, ends - 1)
        steps = np.abs(self._line[[before, after]] - wanted)
        return np.where(steps[0] <= steps[1], before, after)

    @functools.cached_property
    def _line(self):
        return 2 * self.case_index + self.positions.astype(np.float64)


def read_rows(read, rows, *numbers):
    """`read` of arrays (B,) of numbers: (B, ...), zero where rows (B,), unless None, is False."""
    if rows is None or rows.all():
        return read(*numbers)
    part = read(*(one[rows] for one in numbers))
    found = np.zeros((len(rows), *part.shape[1:]), part.dtype)
    found[rows] = part
    return found


def visits(seed, step, batch_size, size):
    """What a step visits, (batch_size,) of 0 .. size - 1: all of them in each epoch, in a fresh
    order; batches run on over its end. A pure function."""
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), size)
    found = np.empty(batch_size, np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        now = epochs == epoch
        found[now] = _epoch_order(seed, epoch, size)[places[now]]
    return found


def other_patients(uniform, first, last, num_cases):
    """Cases (B,) by uniform (B,) in [0, 1); none is in first .. last - 1, the own patient's."""
    num_own = last - first
    cases = (uniform * (num_cases - num_own)).astype(np.int64)
    return cases + np.where(cases >= first, num_own, 0)


def skipped_note(skipped, entries):
    """The note on cases that could not be used, each told as "name (why)"."""
    return (
        f"{len(skipped)} of {len(entries)} training cases were skipped, "
        f"the first being {skipped[0]}."
    )


def check_patients(patients, entries, skipped, least=2):
    """Raises `InputError` if the patients of usable cases among entries are fewer."""
    count = len(set(patients))
    if count < least:
        raise InputError(
            "training cases" if least > 1 else "validation cases",
            found=f"{count} usable patient{'s' * (count != 1)} among "
            f"{len(entries)} cases" + (f"; skipped {skipped[0]}" if skipped else ""),
            expected="at least 2, since anomalies are pasted from another patient"
            if least > 1
            else "held-out healthy cases, to set the threshold",
            remedy="Add healthy images or repair the skipped ones.",
        )


@functools.lru_cache(maxsize=4)
def _epoch_order(seed, epoch, size):
    order = np.random.default_rng((seed, epoch, size)).permutation(size)
    order.flags.writeable = False
    return order


def _cut(case, image_size, min_foreground):
    """The `_Part` of a case, and how many of its slices were nearly empty."""
    facts = slice_facts(case)
    kept = _kept(facts, min_foreground, case.geometry.path or case.case_id)
    slices = case.image[kept] if case.is_volume else [case.image]
    spacing = case.geometry.spacing_mm[-2:]
    squares = [letterbox(one, size=image_size, spacing_mm=spacing)[0] for one in slices]
    return _part(case.case_id, case.patient or case.case_id, np.stack(squares), facts, kept)


def _point(entry, image_size, min_foreground):
    """As `_cut`, of a `RecordEntry` whose slices stay where they are."""
    line, facts = entry.line, entry.facts
    kept = _kept(facts, min_foreground, entry.case_id)
    slices = RecordSlices(
        entry.records,
        line["first_record"] + kept,
        tuple(line["spacing_mm"][-2:]),
        (len(kept), image_size, image_size, line["shape"][-1]),
        np.dtype(line["dtype"]),
    )
    return _part(entry.case_id, line["patient"], slices, facts, kept)


def _part(case_id, patient, slices, facts, kept):
    positions = np.array(facts.positions, np.float32)[kept]
    part = _Part(case_id, patient, slices, positions, facts.range, facts.grey_range)
    return part, len(facts.positions) - len(kept)


def _kept(facts, min_foreground, where):
    kept = facts.kept(min_foreground)
    if not len(kept):
        raise InputError(
            where,
            found="no slice with a foreground",
            expected=f"slices with at least {min_foreground:.0%}",
            remedy="Check the volume and its slice axis.",
        )
    return kept


def _record_bytes(entries, image_size, min_foreground):
    """Bytes of a bank of `RecordEntry`s, known without reading them; 0 if any is another entry."""
    if not all(isinstance(entry, RecordEntry) for entry in entries):
        return 0
    return sum(
        len(entry.facts.kept(min_foreground))
        * image_size**2
        * entry.line["shape"][-1]
        * np.dtype(entry.line["dtype"]).itemsize
        for entry in entries
    )


def _cache_folder(cache_dir, max_bytes):
    if cache_dir is None:
        raise InputError(
            "training slices",
            found=f"more than {max_bytes} bytes",
            expected="a bank that fits into memory",
            remedy="Lower image_size, use fewer cases, or give a cache_dir.",
        )
    Path(cache_dir).mkdir(parents=True, exist_ok=True)
    return Path(cache_dir)


def _allocate(shape, dtype, max_bytes, cache_dir):
    if math.prod(shape) * dtype.itemsize <= max_bytes:
        return np.empty(shape, dtype)
    path = _cache_folder(cache_dir, max_bytes) / "slices.npy"
    return np.lib.format.open_memmap(path, "w+", dtype, shape)
