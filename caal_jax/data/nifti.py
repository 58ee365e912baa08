"""NIfTI-1 and NIfTI-2 files, plain or gzipped."""

import gzip
import math

import nibabel as nib
import numpy as np

from caal_jax.data.arrays import check_shape, check_size, oriented, unreadable


def read_nifti(path, slice_axis, max_bytes):
    """(image, `Geometry`) of a file; values after slope and intercept."""
    nifti = _decode(path, max_bytes)
    proxy = nifti.dataobj
    if (proxy.slope, proxy.inter) == (1, 0):
        array = proxy.get_unscaled()
    else:
        array = np.asarray(proxy, dtype=np.float32)
    return oriented(path, array, nifti.affine, slice_axis)


def _decode(path, max_bytes):
    """The whole file as a nibabel image in memory.

    nibabel stops at the last voxel it needs; reading the stream to its end has gzip compare the
    checksum, so that a damaged file does not pass.
    """
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    with opener(path, "rb") as stream:
        start = stream.read(nib.Nifti2Header.sizeof_hdr)
        for kind in (nib.Nifti1Image, nib.Nifti2Image):
            size = kind.header_class.sizeof_hdr
            if len(start) >= size and kind.header_class.may_contain_header(start):
                header = kind.header_class(start[:size], check=False)
                break
        else:
            raise unreadable(path, "no NIfTI header")
        if not bytes(header["magic"]).startswith(b"n+"):
            raise unreadable(path, "a header whose voxels are in another file")
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
        check_shape(path, shape)
        wanted = int(header["vox_offset"]) + math.prod(map(int, shape)) * dtype.itemsize
        check_size(path, wanted, max_bytes)
        data = start + stream.read(wanted - len(start))
        if len(data) < wanted:
            raise unreadable(path, f"{len(data)} bytes where its header declares {wanted}")
        stream.read(1)
    return kind.from_bytes(data)
