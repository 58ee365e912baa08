"""The training bank of a run on volumes: patches around foreground voxels, cut where they lie."""

import dataclasses

import numpy as np

from caal_jax.data.ahead import read_ahead
from caal_jax.data.facts import FOREGROUND_LEVEL, RAW_TYPES, slice_facts
from caal_jax.data.slices import (
    Batch,
    check_patients,
    other_patients,
    read_rows,
    skipped_note,
    visits,
)
from caal_jax.data.spool import Spool
from caal_jax.errors import InputError

NUM_CENTRES = 4096  # foreground voxels of a volume, drawn once, that patches lie around


def padded(case, patch):
    """The image of a volume, at least as large as a patch, and where the volume lies in it.

    patch: sides (D, H, W) in voxels. Shorter axes are padded at both ends with the image's minimum.
    Returns ((D, H, W, C), three slices). Raises `InputError` for a 2-D image, or for a volume some
    of whose slices were left out.
    """
    where = case.geometry.path or case.case_id
    if not case.is_volume:
        raise InputError(
            where,
            found="a 2-D image",
            expected="a volume, as config.patch_size says",
            remedy="Give volumes, or set --config.patch_size= for a run on slices.",
        )
    if case.positions is not None:
        raise InputError(
            where,
            found="a volume of which slices were left out",
            expected="neighbouring slices, as config.patch_size asks for",
            remedy="Set --config.patch_size= for a run on slices.",
        )
    image = case.image
    spare = [max(side - size, 0) for side, size in zip(patch, image.shape, strict=False)]
    place = tuple(
        slice(extra // 2, extra // 2 + size)
        for extra, size in zip(spare, image.shape, strict=False)
    )
    if any(spare):
        ends = [*((extra // 2, extra - extra // 2) for extra in spare), (0, 0)]
        image = np.pad(image, ends, constant_values=image.min())
    return image, place


def corner_of(centre, shape, patch):
    """The first voxel (3,) of the patch around a voxel, moved until it lies inside the volume."""
    return np.clip(np.subtract(centre, np.array(patch) // 2), 0, np.subtract(shape[:3], patch))


def cut(volume, corner, patch):
    """The patch (*patch, C) of a volume at a corner: a view."""
    return volume[tuple(slice(a, a + n) for a, n in zip(corner, patch, strict=True))]


@dataclasses.dataclass(frozen=True)
class VolumeBank:
    """Healthy volumes, sorted by patient; as `SliceBank`, with patches in place of slices.

    volumes: (D, H, W, C) each, as they were read, no side shorter than the patch's.
    shape: of a patch, (D, H, W, C). dtype: of the patches, that of all volumes or float32.
    low, high: (N,) float32, the `intensity_range` of each volume.
    centres: (N, NUM_CENTRES, 3) foreground voxels of each.
    """

    volumes: tuple[np.ndarray, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    low: np.ndarray
    high: np.ndarray
    centres: np.ndarray
    case_ids: tuple[str, ...]
    patient_first: np.ndarray
    patient_last: np.ndarray
    notes: tuple[str, ...]

    def __len__(self):
        return len(self.volumes)

    @property
    def case_index(self):
        return np.arange(len(self))

    @property
    def nbytes(self):
        return sum(volume.nbytes for volume in self.volumes)

    @property
    def on_disk(self):
        """Whether volumes had to be put into a file."""
        return any(isinstance(volume, np.memmap) for volume in self.volumes)

    @classmethod
    def build(
        cls,
        entries,
        *,
        patch,
        cache_dir,
        equalise=None,
        max_bytes=2**31,
        progress=None,
        min_patients=2,
        channels=None,
    ):
        """Loads each entry once.

        patch: (D, H, W) in voxels. equalise: None, or a function of (volume, low, high) to a volume
        in [0, 1], which then stands in the bank. max_bytes: volumes beyond it lie in a file in
        cache_dir, memory-mapped. progress: called with (done, total) after each entry.
        Cases that cannot be read, are constant, no volumes or of other channels than given, or than
        the first, are skipped with a note. Raises: InputError if fewer than min_patients remain.
        """
        found, skipped, num_bytes, spool = [], [], 0, None

        def read(entry):
            case = entry.load()
            return case, slice_facts(case).range, padded(case, patch)[0]

        for done, (entry, answer) in enumerate(read_ahead(read, entries), start=1):
            try:
                case, range_, volume = answer()
                channels = channels or volume.shape[-1]
                if volume.shape[-1] != channels:
                    raise InputError(
                        case.geometry.path or case.case_id,
                        found=f"{volume.shape[-1]} channels",
                        expected=f"{channels}, as in the volumes before",
                        remedy="Save all of them alike.",
                    )
            except InputError as error:
                skipped.append(f"{entry.case_id} ({error})")
            else:
                centres = _centres(volume, *range_)
                if equalise is not None:
                    volume, range_ = equalise(volume, *range_), (0.0, 1.0)
                num_bytes += volume.nbytes
                if num_bytes > max_bytes:
                    spool = spool or Spool(cache_dir)
                    spool.append(volume)
                    volume = None
                found.append((case.patient or case.case_id, case.case_id, volume, range_, centres))
            if progress is not None:
                progress(done, len(entries))
        if spool:
            waiting = spool.close()
            for k, volume in enumerate(waiting, start=len(found) - len(waiting)):
                found[k] = (*found[k][:2], volume, *found[k][3:])
        check_patients([patient for patient, *_ in found], entries, skipped, min_patients)
        found.sort(key=lambda one: one[0])  # stable: entries keep their order
        patients, case_ids, volumes, ranges, centres = zip(*found, strict=True)
        dtypes = {volume.dtype for volume in volumes}
        keep = len(dtypes) == 1 and dtypes <= {*RAW_TYPES, np.dtype(np.float16)}
        low, high = np.array(ranges, np.float32).T.copy()
        names = np.array(patients)
        return cls(
            volumes=volumes,
            shape=(*patch, channels),
            dtype=dtypes.pop() if keep else np.dtype(np.float32),
            low=low,
            high=high,
            centres=np.stack(centres),
            case_ids=case_ids,
            patient_first=np.searchsorted(names, names, side="left"),
            patient_last=np.searchsorted(names, names, side="right"),
            notes=(skipped_note(skipped, entries),) if skipped else (),
        )

    def batch(self, seed, step, batch_size, *, held_out=None, rows=None):
        """The `Batch` of a step: a pure function of (seed, step, batch_size).

        Every epoch visits each volume once, in a fresh order; the patch lies around one of its
        foreground voxels. The source is the patch at the same relative place of a volume of another
        patient, uniformly drawn. held_out: a bank of other patients that the targets are taken from
        instead. rows: (batch_size,) bool; the voxels of others are not read but zero.
        """
        own = self if held_out is None else held_out
        targets = visits(seed, step, batch_size, len(own))
        pick, where = np.random.default_rng((seed, step)).random((2, batch_size))
        if held_out is None:
            ends = self.patient_first[targets], self.patient_last[targets]
            sources = other_patients(pick, *ends, len(self))
        else:
            sources = (pick * len(self)).astype(np.int64)
        centres = own.centres[targets, (where * NUM_CENTRES).astype(np.int64)]
        places = [own.place(case, centre) for case, centre in zip(targets, centres, strict=True)]
        return Batch(
            target=read_rows(own.patches, rows, targets, np.array(places)),
            source=read_rows(self.patches, rows, sources, np.array(places)),
            low=own.low[targets],
            high=own.high[targets],
            source_low=self.low[sources],
            source_high=self.high[sources],
            indices=targets,
        )

    def place(self, case, voxel):
        """A voxel's place relative to its volume, (3,) in (0, 1)."""
        return (np.asarray(voxel) + 0.5) / self.volumes[case].shape[:3]

    def patches(self, cases, places):
        """The patches (B, *shape) around relative places (B, 3) of volumes (B,)."""
        patch = self.shape[:3]
        found = np.empty((len(cases), *self.shape), self.dtype)
        for k, (case, place) in enumerate(zip(cases, places, strict=True)):
            volume = self.volumes[case]
            centre = (np.asarray(place) * volume.shape[:3]).astype(np.int64)
            corner = corner_of(centre, volume.shape, patch)
            found[k] = cut(volume, corner, patch)
        return found


def _centres(volume, low, high):
    """(NUM_CENTRES, 3) voxels of the foreground; there is one wherever high > low."""
    level = low + FOREGROUND_LEVEL * (high - low)
    inside = np.flatnonzero((volume > level).any(axis=-1))
    # The volume's size as the seed: the same voxels whatever was read before.
    rng = np.random.default_rng(volume.shape)
    chosen = inside[rng.integers(len(inside), size=NUM_CENTRES)]
    return np.stack(np.unravel_index(chosen, volume.shape[:3]), axis=-1).astype(np.uint16)
