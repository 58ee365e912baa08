"""The training bank: every usable slice of the healthy cases, square, in memory, raw."""

import contextlib
import dataclasses
import functools
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from caal_jax.data.letterbox import letterbox
from caal_jax.errors import InputError

# Percentiles of more values than this come from an even subsample of about as many.
MAX_RANGE_VALUES = 2**20
FOREGROUND_LEVEL = 0.05


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


def intensity_range(image):
    """Robust (low, high) of a whole case: percentiles 0.5 and 99.5 over everything in it.

    image: any shape and real type, finite. Falls back to the minimum and maximum where the
    percentiles coincide (mostly background); low == high only for a constant image. Large
    volumes are subsampled evenly.
    """
    values = image.reshape(-1)
    # An odd step, since a power of two would visit the same few columns of every row.
    sample = values[:: (values.size // MAX_RANGE_VALUES) | 1]
    low, high = np.percentile(sample, (0.5, 99.5))
    if low == high:
        low, high = values.min(), values.max()
    return float(low), float(high)


def case_range(case, image):
    """`intensity_range` of a case's image. Raises `InputError`, naming it, if it is constant."""
    low, high = intensity_range(image)
    if low == high:
        raise InputError(
            case.geometry.path or case.case_id,
            found=f"the same value everywhere ({low:g})",
            expected="an image",
            remedy="Leave it out.",
        )
    return low, high


def match_channels(image, channels):
    """Grey to colour by repetition, colour to grey by luma; (..., C) in, (..., channels) out.

    Raises: ValueError unless both counts are 1 or 3. Reference: cv2.COLOR_RGB2GRAY.
    """
    have = image.shape[-1]
    if have == channels:
        return image
    if (have, channels) == (1, 3):
        return np.repeat(image, 3, axis=-1)
    if (have, channels) == (3, 1):
        wide = image.astype(np.float32) if image.dtype == np.int16 else image
        flat = np.ascontiguousarray(wide.reshape(-1, image.shape[-2], 3))
        grey = cv2.cvtColor(flat, cv2.COLOR_RGB2GRAY).reshape(*image.shape[:-1], 1)
        return np.round(grey).astype(image.dtype) if image.dtype == np.int16 else grey
    raise ValueError(f"channels: cannot turn {have} into {channels}")


class _Part(NamedTuple):
    """What one case gives to the bank."""

    case_id: str
    patient: str
    slices: np.ndarray  # (N, S, S, C)
    positions: np.ndarray  # (N,) in [0, 1]
    range: tuple[float, float]
    grey_range: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class SliceBank:
    """Slices of healthy cases, sorted by patient, case and position.

    images: (N, S, S, C), uint8 or uint16 where every case has that type, float32 otherwise.
    low, high: (N,) float32, the `intensity_range` of the whole case a slice comes from.
    positions: (N,) float32 relative position in the volume, 0 to 1; 0.5 for 2-D images.
    case_index: (N,) index into `case_ids`.
    patient_first, patient_last: (cases,) first and one past the last case of a case's patient.
    notes: one sentence each about what was left out or converted.
    """

    images: np.ndarray
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
    ):
        """Loads each entry once and keeps its slices, letterboxed to image_size x image_size.

        min_foreground: slices of volumes are left out where less than this share lies above
        5 % of the case's intensity range. max_bytes: a larger bank lives in a memory-mapped file
        in `cache_dir`. progress: called with (done, total) after each entry.
        Cases that cannot be read or are constant are skipped with a note. If any case is grey,
        colour cases become grey, with a note.
        Raises: InputError if fewer than two patients remain, or if the bank is larger than
        `max_bytes` and there is no `cache_dir`.
        """
        parts, skipped, num_empty, num_bytes = [], [], 0, 0
        with contextlib.ExitStack() as stack:
            spool = None
            for done, entry in enumerate(entries, start=1):
                try:
                    part, empty = _cut(entry.load(), image_size, min_foreground)
                except InputError as error:
                    skipped.append(f"{entry.case_id} ({error})")
                else:
                    num_empty += empty
                    num_bytes += part.slices.nbytes
                    if num_bytes > max_bytes:
                        # Later parts wait on disk until the bank stands.
                        spool = spool or stack.enter_context(
                            tempfile.TemporaryDirectory(dir=_cache_folder(cache_dir, max_bytes))
                        )
                        path = Path(spool, f"{done}.npy")
                        np.save(path, part.slices)
                        part = part._replace(slices=np.load(path, mmap_mode="r"))
                    parts.append(part)
                if progress is not None:
                    progress(done, len(entries))
            notes = []
            if skipped:
                notes.append(
                    f"{len(skipped)} of {len(entries)} training cases were skipped, "
                    f"the first being {skipped[0]}."
                )
            if num_empty:
                notes.append(f"{num_empty} nearly empty training slices were left out.")
            num_patients = len({part.patient for part in parts})
            if num_patients < 2:
                raise InputError(
                    "training cases",
                    found=f"{num_patients} usable patient{'s' * (num_patients != 1)} among "
                    f"{len(entries)} cases" + (f"; skipped {skipped[0]}" if skipped else ""),
                    expected="at least 2, since anomalies are pasted from another patient",
                    remedy="Add healthy images or repair the skipped ones.",
                )
            return cls._join(parts, notes, max_bytes, cache_dir)

    @classmethod
    def _join(cls, parts, notes, max_bytes, cache_dir):
        parts = sorted(parts, key=lambda part: part.patient)  # stable: entries keep their order
        counts = [part.slices.shape[-1] for part in parts]
        channels = min(counts)
        if max(counts) > channels:
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
        keep = len(dtypes) == 1 and dtypes <= {np.dtype(np.uint8), np.dtype(np.uint16)}
        dtype = dtypes.pop() if keep else np.dtype(np.float32)
        lengths = [len(part.slices) for part in parts]
        shape = (sum(lengths), *parts[0].slices.shape[1:3], channels)
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

    def batch(self, seed, step, batch_size):
        """The `Batch` of a step: a pure function of (seed, step, batch_size).

        Every epoch visits each slice once in a fresh order; batches run on over its end. The
        source comes from a case of another patient, uniformly drawn: its slice at the nearest
        relative position, or the image itself for 2-D cases.
        """
        targets = self._targets(seed, step, batch_size)
        rng = np.random.default_rng((seed, step))
        sources = self._partners(targets, rng.random(batch_size))
        return Batch(
            target=self.images[targets],
            source=self.images[sources],
            low=self.low[targets],
            high=self.high[targets],
            source_low=self.low[sources],
            source_high=self.high[sources],
            indices=targets,
        )

    def _targets(self, seed, step, batch_size):
        epochs, places = np.divmod(step * batch_size + np.arange(batch_size), len(self))
        targets = np.empty(batch_size, np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            now = epochs == epoch
            targets[now] = _epoch_order(seed, epoch, len(self))[places[now]]
        return targets

    def _partners(self, targets, uniform):
        """Slices of other patients for targets (B,); uniform (B,) in [0, 1) picks the cases."""
        own = self.case_index[targets]
        first, last = self.patient_first[own], self.patient_last[own]
        num_others = len(self.case_ids) - (last - first)
        cases = (uniform * num_others).astype(np.int64)
        cases = cases + np.where(cases >= first, last - first, 0)
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


@functools.lru_cache(maxsize=4)
def _epoch_order(seed, epoch, size):
    order = np.random.default_rng((seed, epoch, size)).permutation(size)
    order.flags.writeable = False
    return order


def _cut(case, image_size, min_foreground):
    """The `_Part` of a case, and how many of its slices were nearly empty."""
    image, spacing = case.image, case.geometry.spacing_mm
    low, high = case_range(case, image)
    if image.shape[-1] not in (1, 3):
        raise InputError(
            case.geometry.path or case.case_id,
            found=f"{image.shape[-1]} channels",
            expected="1 or 3",
            remedy="Save it as grey or RGB.",
        )
    grey_range = (low, high)
    if image.shape[-1] == 3:
        grey_range = intensity_range(match_channels(image, 1))
    if not case.is_volume:
        slices, positions = [image], [0.5]
    else:
        level = low + FOREGROUND_LEVEL * (high - low)
        full = (image > level).any(axis=-1).mean(axis=(1, 2)) >= min_foreground
        if not full.any():
            raise InputError(
                case.geometry.path or case.case_id,
                found="no slice with a foreground",
                expected=f"slices with at least {min_foreground:.0%}",
                remedy="Check the volume and its slice axis.",
            )
        kept = np.flatnonzero(full)
        slices, positions = image[kept], kept / max(len(image) - 1, 1)
        spacing = spacing[1:]
    squares = [letterbox(one, size=image_size, spacing_mm=spacing)[0] for one in slices]
    part = _Part(
        case_id=case.case_id,
        patient=case.patient or case.case_id,
        slices=np.stack(squares),
        positions=np.asarray(positions, np.float32),
        range=(low, high),
        grey_range=grey_range,
    )
    return part, (len(image) - len(slices) if case.is_volume else 0)


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
