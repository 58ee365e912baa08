"""The currency of the data stage: one scan with everything needed to write its maps back."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where the array of a case sits in the file it came from.

    spacing_mm: pixel or voxel size along each spatial axis of `Case.image`, in its order
        ((row, column) or (slice, row, column)); ones where the format has none.
    slice_axis: for volumes, the axis of the file's array that was moved to the front.
    affine: (4, 4), indices of the file's array to mm (right, anterior, superior), or None. The
        array of a DICOM volume has the axes (row, column, slice).
    path: the file, the folder of a DICOM series, or None for made-up cases.
    """

    spacing_mm: tuple[float, ...]
    slice_axis: int | None = None
    affine: np.ndarray | None = None
    path: Path | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """One scan in its own data type.

    image: (H, W, C), or (D, H, W, C) for a volume with its slice axis first; finite; native dtype.
    mask: bool, image's shape without channels; None where there is no pixel truth.
    label: 1 abnormal, 0 normal, None unknown.
    kind: "normal", or the name of the anomaly ("malignant", "deformation", ...).
    patient: what must never be split between training and test.
    positions: relative positions (0 to 1) of a volume's slices, where some were left out.
    """

    case_id: str
    image: np.ndarray
    geometry: Geometry
    mask: np.ndarray | None = None
    label: int | None = None
    kind: str = "normal"
    patient: str = ""
    positions: tuple[float, ...] | None = None

    @property
    def is_volume(self):
        return self.image.ndim == 4


@dataclasses.dataclass(frozen=True)
class Entry:
    """A case that is not in memory yet: `load()` reads it, or raises `InputError`.

    paths: the files that it reads, image first; a folder stands for the DICOM series in it.
    """

    case_id: str
    load: Callable[[], Case]
    paths: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What a data source yields.

    train, validation: normal cases, disjoint by patient. test: normal and abnormal cases.
    stamp: "" for plain real data, "phantom" or "planted" where images or anomalies are made up.
    test_has_masks: whether pixel metrics can be computed.
    notes: one sentence each about what was skipped or assumed; they end up in the report.
    """

    name: str
    train: list[Entry]
    validation: list[Entry]
    test: list[Entry]
    stamp: str = ""
    test_has_masks: bool = True
    notes: tuple[str, ...] = ()
