"""Maps come back on the grid of the file they belong to."""

import cv2
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from caal_jax.data.case import Case, Geometry
from caal_jax.data.readers import read_image
from caal_jax.data.writers import csv_text, write_map

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("tail", [(), (1,)])
def test_nifti_keeps_shape_and_both_affine_forms(tmp_path, axis, tail):
    volume = RNG.integers(0, 255, (4, 5, 6, *tail)).astype(np.int16)
    nifti = nib.Nifti1Image(volume, None)
    nifti.set_sform(np.diag([-2.0, 3, 1, 1]), 4)
    nifti.set_qform(np.diag([2.0, 3, 1, 1]), 1)
    nifti.header.set_slope_inter(0.1, 5)
    nifti.header["descrip"] = b"Jane Doe"
    nifti.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(nifti, tmp_path / "in.nii.gz")
    case = read_image(tmp_path / "in.nii.gz", slice_axis=axis)
    values = RNG.standard_normal(case.image.shape[:-1]).astype(np.float32)
    path = write_map(tmp_path / "out.v1", values, case)
    assert path == tmp_path / "out.v1.nii.gz"
    got, want = nib.load(path), nib.load(tmp_path / "in.nii.gz")
    assert got.shape == want.shape
    assert got.get_data_dtype() == np.float32
    back = np.moveaxis(got.get_fdata().reshape(4, 5, 6), axis, 0)
    assert_array_equal(back.astype(np.float32), values)
    for form in ("get_sform", "get_qform"):
        for one, other in zip(
            getattr(got, form)(coded=True), getattr(want, form)(coded=True), strict=True
        ):
            assert_allclose(one, other)
    assert b"Jane" not in got.to_bytes()
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_png_scale(tmp_path):
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(tmp_path / "in.png")
    case = read_image(tmp_path / "in.png")
    values = RNG.random((7, 9)).astype(np.float32)
    values[0, :2] = 0, 1
    path = write_map(tmp_path / "out", values, case)
    assert path == tmp_path / "out.png"
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    assert stored[0, 1] == 65535
    assert_allclose(stored / 65535, values, atol=0.51 / 65535)


def test_made_up_volume_has_no_file(tmp_path):
    geometry = Geometry((1.0, 1.0, 1.0), slice_axis=1, affine=np.diag([4.0, 4, 4, 1]))
    case = Case("x", np.zeros((2, 3, 4, 1), np.float32), geometry)
    values = RNG.random((2, 3, 4)).astype(np.float32)
    got = nib.load(write_map(tmp_path / "m", values, case))
    assert_array_equal(np.moveaxis(got.get_fdata(), 1, 0).astype(np.float32), values)
    assert_array_equal(got.affine, geometry.affine)


def test_two_dimensional_nifti(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((3, 4, 1), np.uint8), np.eye(4)), tmp_path / "a.nii")
    case = read_image(tmp_path / "a.nii")
    values = RNG.standard_normal((3, 4)).astype(np.float32)
    got = nib.load(write_map(tmp_path / "m", values, case))
    assert_array_equal(got.get_fdata()[..., 0].astype(np.float32), values)


def test_wrong_maps_leave_no_file(tmp_path):
    case = Case("x", np.zeros((3, 4, 1), np.uint8), Geometry((1.0, 1.0)))
    with pytest.raises(ValueError, match=r"want \(3, 4\), got \(4, 3\)"):
        write_map(tmp_path / "m", np.zeros((4, 3)), case)
    with pytest.raises(ValueError, match="NaN"):
        write_map(tmp_path / "m", np.full((3, 4), np.nan), case)
    with pytest.raises(ValueError, match=r"want \[0, 1\]"):
        write_map(tmp_path / "m", np.full((3, 4), 1.5), case)
    assert list(tmp_path.iterdir()) == []


def test_a_spreadsheet_runs_no_text_of_ours():
    rows = [["=1+1", "+a", "-a", "@a", "\ta", "plain", -1.5, None]]
    lines = csv_text(["=name"], rows).splitlines()
    assert lines[1] == "'=1+1,'+a,'-a,'@a,'\ta,plain,-1.5,"
