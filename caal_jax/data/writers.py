"""Maps out, in the geometry of the file the case came from; and tables."""

import csv
import gzip
import io

import cv2
import nibabel as nib
import numpy as np

from caal_jax.files import write_bytes

MAP_FORMATS = ("auto", "nifti", "npy")


def write_map(path_stem, values, case, *, form="auto"):
    """Writes a map beside its case, on the grid of the file that the case came from.

    path_stem: path without a suffix; its folder must exist. values: the shape of `case.image`
    without channels, finite. form: "auto" is NIfTI for NIfTI cases and volumes, and 16-bit PNG
    otherwise; "nifti" and "npy" hold for every case. NIfTI (`.nii.gz`) keeps the values as float32
    on the input's grid: same shape, affine, qform and sform codes. PNG holds values in [0, 1] as
    round(65535 * value), so 65535 means 1.0. `.npy` is float32 in the axis order of the file (of
    DICOM: row, column).
    Returns the path. The file appears whole or not at all.
    Raises: ValueError if the shape differs, a value is not finite, or a PNG value lies outside
    [0, 1].
    """
    values = np.asarray(values, np.float32)
    if values.shape != case.image.shape[:-1]:
        raise ValueError(f"values: want {case.image.shape[:-1]}, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"values: NaN or infinite in the map of case {case.case_id}")
    if form == "npy":
        buffer = io.BytesIO()
        np.save(buffer, _in_file_order(values, case.geometry), allow_pickle=False)
        return write_bytes(f"{path_stem}.npy", buffer.getvalue())
    if form == "nifti" or case.is_volume or case.geometry.affine is not None:
        return write_bytes(f"{path_stem}.nii.gz", _nifti_bytes(values, case.geometry))
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"values: want [0, 1], got [{values.min()}, {values.max()}]")
    _, data = cv2.imencode(".png", np.round(values * 65535).astype(np.uint16))
    return write_bytes(f"{path_stem}.png", data.tobytes())


def _in_file_order(values, geometry):
    return np.moveaxis(values, 0, geometry.slice_axis or 0) if values.ndim == 3 else values


def _nifti_bytes(values, geometry):
    values = _in_file_order(values, geometry)
    affine = np.eye(4) if geometry.affine is None else geometry.affine
    path = geometry.path
    if path is None or not path.is_file() or not path.name.lower().endswith((".nii", ".nii.gz")):
        return gzip.compress(nib.Nifti1Image(values, affine).to_bytes(), 3, mtime=0)
    source = nib.load(path)
    header = source.header.copy()
    header.set_data_dtype(np.float32)
    header["cal_min"] = header["cal_max"] = 0
    # Free text and extensions of a scanner's file can name the patient.
    header["descrip"], header["aux_file"] = b"caal_jax map", b""
    header.extensions.clear()
    # Given the header's own affine, nibabel leaves both forms and their codes alone.
    image = type(source)(values.reshape(source.shape), source.affine, header)
    return gzip.compress(image.to_bytes(), 3, mtime=0)


def csv_text(names, rows):
    """Rows below a line of names, as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(map(safe_row, rows))
    return out.getvalue()


def safe_row(row):
    """A row whose texts a spreadsheet will not run as formulas: those get a leading quote."""
    return [
        f"'{cell}" if isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r") else cell
        for cell in row
    ]
