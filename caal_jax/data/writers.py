"""Maps out, in the geometry of the file the case came from."""

import gzip

import cv2
import nibabel as nib
import numpy as np

from caal_jax.files import write_bytes


def write_map(path_stem, values, case):
    """Writes a map beside its case: NIfTI for NIfTI cases and volumes, 16-bit PNG otherwise.

    path_stem: path without a suffix; its folder must exist. values: the shape of `case.image`
    without channels, finite. NIfTI (`.nii.gz`) keeps the values as float32 on the input's grid:
    same shape, affine, qform and sform codes. PNG holds values in [0, 1] as round(65535 * value),
    so 65535 means 1.0.
    Returns the path. The file appears whole or not at all.
    Raises: ValueError if the shape differs, a value is not finite, or a PNG value lies outside
    [0, 1].
    """
    values = np.asarray(values, np.float32)
    if values.shape != case.image.shape[:-1]:
        raise ValueError(f"values: want {case.image.shape[:-1]}, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"values: NaN or infinite in the map of case {case.case_id}")
    if case.is_volume or case.geometry.affine is not None:
        return write_bytes(f"{path_stem}.nii.gz", _nifti_bytes(values, case.geometry))
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"values: want [0, 1], got [{values.min()}, {values.max()}]")
    _, data = cv2.imencode(".png", np.round(values * 65535).astype(np.uint16))
    return write_bytes(f"{path_stem}.png", data.tobytes())


def _nifti_bytes(values, geometry):
    if values.ndim == 3:
        values = np.moveaxis(values, 0, geometry.slice_axis or 0)
    affine = np.eye(4) if geometry.affine is None else geometry.affine
    if geometry.path is None or not geometry.path.is_file():
        return gzip.compress(nib.Nifti1Image(values, affine).to_bytes(), 3, mtime=0)
    source = nib.load(geometry.path)
    header = source.header.copy()
    header.set_data_dtype(np.float32)
    header["cal_min"] = header["cal_max"] = 0
    # Free text and extensions of a scanner's file can name the patient.
    header["descrip"], header["aux_file"] = b"caal_jax map", b""
    header.extensions.clear()
    # Given the header's own affine, nibabel leaves both forms and their codes alone.
    image = type(source)(values.reshape(source.shape), source.affine, header)
    return gzip.compress(image.to_bytes(), 3, mtime=0)
