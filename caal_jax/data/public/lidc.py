"""LIDC-IDRI: chest CT scans in which up to four radiologists outlined lung nodules."""

import dataclasses
import math
import os
import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from caal_jax.data.case import DataSet, Entry
from caal_jax.data.dicom import sort_series
from caal_jax.data.readers import (
    dicom_files,
    existing_folder,
    natural_key,
    read_image,
    refuse_folder,
)
from caal_jax.data.split import MIN_TRAIN, TEST_SEED, hold_out
from caal_jax.errors import InputError

LAYOUT = "Point it at the folder with LIDC-IDRI-0001/<study>/<series>/*.dcm and its XML."
TEST_SHARE_OF_PATIENTS = 0.2
WINDOW_HU = -1000, 400
CLEARANCE_MM = 5.0
MIN_READERS = 2  # of four: half of them outlined the voxel
MAX_XML_BYTES = 2**25
SPACE = "{http://www.nih.gov}"


class Outline(NamedTuple):
    """One closed curve of one reader, or the mark of something small.

    reader: 0 to 3. slice_uid, z_mm: the slice it lies on. points: (N, 2) int x, y; a single point
    marks what has no outline. hole: the curve bounds a part that does not belong to the nodule.
    """

    reader: int
    slice_uid: str
    z_mm: float
    points: np.ndarray
    hole: bool


def lidc(root, *, validation_fraction=0.2, seed=0):
    """LIDC-IDRI in its public layout (Armato et al., Medical Physics 38, 2011).

    root: the folder with the patients' folders. A scan is a folder with DICOM slices and one XML;
    chest radiographs are left out. 20 % of the patients are test patients, with whole scans; the
    truth is what at least two readers outlined. Of the others, training and validation get the
    slices that lie more than 5 mm from every mark of any reader (`Case.positions` tells where).
    Values are HU cut to the window -1000 .. 400, int16.
    Raises: InputError if the folder is missing or holds scans of fewer than three patients; loading
    raises it for unreadable series and XML that is not the published kind.
    """
    root = existing_folder(root, where="data_dir", remedy=LAYOUT)
    scans = _scans(root)
    patients = {patient for patient, _ in scans}
    if len(patients) < MIN_TRAIN + 1:
        raise InputError(
            f"data_dir {root}",
            found=f"CT scans of {len(patients)} patients",
            expected=f"at least {MIN_TRAIN + 1}",
            remedy=LAYOUT,
        )
    test = hold_out(patients, fraction=TEST_SHARE_OF_PATIENTS, seed=TEST_SEED)
    validation = hold_out(patients - test, fraction=validation_fraction, seed=seed)
    numbers, train, held_out, tested = defaultdict(int), [], [], []
    for patient, xml in scans:
        numbers[patient] += 1
        case_id = f"{patient}-{numbers[patient]}"
        part = tested if patient in test else held_out if patient in validation else train
        part.append(_entry(xml, case_id, patient, whole=patient in test))
    return DataSet(
        name="LIDC-IDRI",
        train=train,
        validation=held_out,
        test=tested,
        notes=("Normal means further than 5 mm from every mark of any of the readers.",),
    )


def read_outlines(path):
    """(series UID, outlines) of a reading.

    Raises: InputError for a file that is too large, has a document type definition (no published
    reading has one, and entities could read files or fill the memory), or lacks what it must have.
    """
    try:
        from defusedxml import ElementTree
    except ImportError as error:
        raise InputError(
            path,
            found="a reading in XML, but defusedxml is not installed",
            expected="the optional XML reader",
            remedy="Run: pip install 'caal_jax[records]'.",
        ) from error
    if path.stat().st_size > MAX_XML_BYTES:
        raise _broken(path, f"{path.stat().st_size} bytes")
    try:
        tree = ElementTree.parse(path, forbid_dtd=True).getroot()
        if tree.tag != f"{SPACE}LidcReadMessage":
            raise _broken(path, f"the root element {tree.tag[:60]}")
        series = tree.findtext(f"{SPACE}ResponseHeader/{SPACE}SeriesInstanceUid", "").strip()
        outlines = []
        for reader, session in enumerate(tree.iter(f"{SPACE}readingSession")):
            for roi in session.iter(f"{SPACE}roi"):
                outlines.append(_outline(reader, roi, "edgeMap"))
            for mark in session.iter(f"{SPACE}nonNodule"):
                outlines.append(_outline(reader, mark, "locus"))
    except InputError:
        raise
    except Exception as error:  # parsers, and numbers that are none
        raise _broken(path, f"broken XML ({error})") from error
    return series, outlines


def _outline(reader, element, points):
    points = [
        (int(point.findtext(f"{SPACE}xCoord")), int(point.findtext(f"{SPACE}yCoord")))
        for point in element.iter(f"{SPACE}{points}")
    ]
    if not points:
        raise ValueError("a mark without a point")
    z_mm = float(element.findtext(f"{SPACE}imageZposition"))
    if not math.isfinite(z_mm):
        raise ValueError(f"a mark at z {z_mm}")
    return Outline(
        reader,
        element.findtext(f"{SPACE}imageSOP_UID", "").strip(),
        z_mm,
        np.array(points, np.int32),
        element.findtext(f"{SPACE}inclusion", "TRUE").strip().upper() == "FALSE",
    )


def fill(shape, outlines):
    """What the outlines of one reader on one slice enclose, bool (H, W).

    The curve itself runs on the first pixels outside. Single points enclose nothing.
    """
    inside, holes = np.zeros((2, *shape), np.uint8)
    for outline in outlines:
        if len(outline.points) > 1:
            mask = np.zeros(shape, np.uint8)
            cv2.fillPoly(mask, [outline.points], 1)
            if outline.hole:
                holes |= mask
            else:
                cv2.polylines(mask, [outline.points], True, 0)
                inside |= mask
    return (inside > holes).astype(bool)


def _entry(xml, case_id, patient, *, whole):
    def load():
        series, outlines = read_outlines(xml)
        case = read_image(xml.parent)
        # Padding outside the scanner's circle lies far below air.
        image = np.clip(np.round(case.image), *WINDOW_HU).astype(np.int16)
        uids, z_mm = _slices(xml.parent, series)
        marked = _marked(xml, outlines, uids, z_mm, image.shape[1:3])
        case = dataclasses.replace(case, case_id=case_id, patient=patient, image=image)
        if whole:
            mask = np.zeros(image.shape[:3], bool)
            for index, marks in marked.items():
                readers = {outline.reader for outline in marks}
                votes = [
                    fill(mask.shape[1:], [one for one in marks if one.reader == reader])
                    for reader in readers
                ]
                mask[index] = np.sum(votes, axis=0) >= MIN_READERS
            label = int(mask.any())
            kind = "nodule" if label else "normal"
            return dataclasses.replace(case, mask=mask, label=label, kind=kind)
        marks_mm = np.array([z_mm[index] for index in marked] or [np.inf])
        clear = np.abs(z_mm[:, None] - marks_mm).min(axis=1) > CLEARANCE_MM
        if not clear.any():
            raise InputError(
                xml.parent,
                found="marks on or near every slice",
                expected="some slices without",
                remedy="Leave the scan out.",
            )
        kept = np.flatnonzero(clear)
        return dataclasses.replace(
            case,
            image=image[kept],
            mask=np.zeros((len(kept), *image.shape[1:3]), bool),
            label=0,
            positions=tuple((kept / max(len(image) - 1, 1)).tolist()),
        )

    return Entry(case_id, load, (xml.parent, xml))


def _scans(root):
    """(patient, XML file) of every CT scan, in natural order."""
    scans, found = [], []
    for parent, _, names in os.walk(root, onerror=refuse_folder):
        found += [Path(parent, name) for name in names if name.endswith(".xml")]
    for path in sorted(found, key=natural_key):
        patient = re.search(r"LIDC-IDRI-\d{4}", str(path.relative_to(root)))
        if not patient or path.name.startswith(".") or not path.is_file():
            continue
        try:
            with path.open("rb") as stream:
                # Readings of chest radiographs say so in their root element.
                radiograph = b"<IdriReadMessage" in stream.read(2048)
        except OSError as error:
            raise _broken(path, f"a file that cannot be read ({error.strerror})") from error
        if not radiograph and _slice_files(path.parent):
            scans.append((patient[0], path))
    return scans


def _slice_files(folder):
    """The same files that `read_image` reads of a folder."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return dicom_files([path for path in files if not path.name.startswith(".")])


def _slices(folder, series):
    """SOP UIDs (a list) and z in mm (N,) of the slices of a series, in the order of its volume."""
    import pydicom

    wanted = ["SOPInstanceUID", "SeriesInstanceUID"]
    wanted += ["ImagePositionPatient", "ImageOrientationPatient"]
    paths, headers, z_mm = _slice_files(folder), [], []
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=wanted)
            own = header.SeriesInstanceUID
            z_mm.append(float(header.ImagePositionPatient[2]))
        except Exception as error:  # as broken files raise nearly every built-in exception
            raise _broken(path, f"a broken header ({error})", "a CT slice") from error
        if series not in ("", own):
            raise _broken(folder, f"slices of the series {own}", series)
        headers.append(header)
    order, *_ = sort_series(folder, paths, headers)
    return [str(headers[at].get("SOPInstanceUID", "")) for at in order], np.array(z_mm)[order]


def _marked(xml, outlines, uids, z_mm, shape):
    """{slice index: its outlines}; slices are found by UID, or else by position."""
    index_of = {uid: index for index, uid in enumerate(uids)}
    half = np.median(np.abs(np.diff(z_mm))) / 2 if len(z_mm) > 1 else CLEARANCE_MM
    marked = defaultdict(list)
    for outline in outlines:
        nearest = int(np.abs(z_mm - outline.z_mm).argmin())
        index = index_of.get(outline.slice_uid, nearest)
        away = abs(z_mm[index] - outline.z_mm)
        if outline.slice_uid not in index_of and away > half:
            raise _broken(xml, f"a mark at z {outline.z_mm}, {away:.3g} mm from any slice")
        if (outline.points < 0).any() or (outline.points >= shape[::-1]).any():
            raise _broken(xml, f"a mark outside the image at z {outline.z_mm}")
        marked[index].append(outline)
    return marked


def _broken(path, found, expected="a reading as published"):
    return InputError(path, found=found, expected=expected, remedy="Download it again.")
