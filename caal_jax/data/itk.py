"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr): text headers with raw or deflated voxels.

Formats as ITK writes them: https://itk.org/Wiki/ITK/MetaIO/Documentation and
https://teem.sourceforge.net/nrrd/format.html.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caal_jax.data.arrays import (
    check_shape,
    check_size,
    inflate,
    oriented,
    plausible,
    unreadable,
)
from caal_jax.data.case import Geometry
from caal_jax.errors import InputError

MAX_HEADER_BYTES = 2**16
METAIMAGE_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "signed long long", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
# What turns the axes of a named space into right, anterior, superior.
NRRD_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}


class Header(NamedTuple):
    """shape: fastest axis first. affine: (4, 4), indices to mm (RAS). data_file: None if local."""

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    compressed: bool
    data_file: str | None


def read_metaimage(path, slice_axis, max_bytes):
    """(image, `Geometry`) of a MetaImage."""
    return _read(path, _metaimage_header, slice_axis, max_bytes)


def read_nrrd(path, slice_axis, max_bytes):
    """(image, `Geometry`) of an NRRD file."""
    return _read(path, _nrrd_header, slice_axis, max_bytes)


def _read(path, parse, slice_axis, max_bytes):
    with open(path, "rb") as stream:
        header = parse(path, stream)
        check_shape(path, header.shape)
        wanted = math.prod(header.shape) * header.dtype.itemsize
        check_size(path, wanted, max_bytes)
        if header.data_file is None:
            data = stream.read()
        else:
            data = _beside(path, header.data_file, max_bytes).read_bytes()
    if header.compressed:
        data = inflate(path, data, wanted)
    elif len(data) < wanted:
        raise unreadable(path, f"{len(data)} bytes where its header declares {wanted}")
    array = np.frombuffer(data, header.dtype, math.prod(header.shape))
    array = array.reshape(header.shape, order="F")
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        # The fastest axis runs along a row of the picture.
        columns, rows = np.linalg.norm(header.affine[:3, :2], axis=0)
        return array.T[..., None], Geometry(plausible((rows, columns)), path=path)
    return oriented(path, array, header.affine, slice_axis)


def _beside(path, name, max_bytes):
    """The file of voxels that a header names; it must lie in the header's own folder."""
    data = path.parent / name
    if Path(name).name != name or not data.is_file():
        raise InputError(
            path,
            found=f"voxels in {name!r}",
            expected="a file in the folder of the header",
            remedy="Put both files into one folder, or save as .mha or .nrrd.",
        )
    check_size(data, data.stat().st_size, max_bytes)
    return data


def _lines(path, stream):
    """Yields the lines of a text header; the stream stands behind the last one yielded."""
    left = MAX_HEADER_BYTES
    while (line := stream.readline(left)).endswith(b"\n"):
        left -= len(line)
        yield line.decode("latin-1").strip()
    raise unreadable(path, "a header without an end")


def _metaimage_header(path, stream):
    fields = {}
    for line in _lines(path, stream):
        name, _, value = line.partition("=")
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":  # always the last line
            break
    rank = _rank(path, fields["NDims"])
    _expect(path, "ElementNumberOfChannels", fields.get("ElementNumberOfChannels", "1"), ["1"])
    _expect(path, "ElementType", fields["ElementType"], METAIMAGE_TYPES)
    _expect(path, "BinaryData", fields.get("BinaryData", "True"), ["True"])
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    shape = tuple(map(int, fields["DimSize"].split()))
    spacing = _numbers(path, fields.get("ElementSpacing", "1 " * rank), rank)
    # Every rank numbers of the matrix are the direction of one axis.
    matrix = fields.get("TransformMatrix", " ".join(map(str, np.eye(rank).ravel())))
    directions = _numbers(path, matrix, rank * rank).reshape(rank, rank)
    origin = _numbers(path, fields.get("Offset", fields.get("Position", "0 " * rank)), rank)
    if len(shape) != rank:
        raise unreadable(path, f"{len(shape)} sizes for {rank} dimensions")
    name = fields["ElementDataFile"]
    return Header(
        shape=shape,
        dtype=np.dtype(METAIMAGE_TYPES[fields["ElementType"]]).newbyteorder(
            ">" if big == "True" else "<"
        ),
        affine=_affine(directions * spacing[:, None], origin, (-1, -1, 1)),
        compressed=fields.get("CompressedData", "False") == "True",
        data_file=None if name == "LOCAL" else name,
    )


def _nrrd_header(path, stream):
    fields, lines = {}, _lines(path, stream)
    if not next(lines).startswith("NRRD000"):
        raise unreadable(path, "no NRRD header")
    for line in lines:
        if not line:
            break
        name, colon, value = line.partition(": ")
        if colon and not line.startswith("#"):
            fields[name.strip().lower()] = value.strip()
            # The header of a detached file may end with its file.
            if name.strip().lower() in ("data file", "datafile") and path.suffix == ".nhdr":
                break
    rank = _rank(path, fields["dimension"])
    kinds = {name: kind for kind, names in NRRD_TYPES.items() for name in names}
    _expect(path, "type", fields["type"].lower(), kinds)
    encoding = fields["encoding"].lower()
    _expect(path, "encoding", encoding, ("raw", "gzip", "gz"))
    for name in ("line skip", "lineskip", "byte skip", "byteskip"):
        _expect(path, name, fields.get(name, "0"), ["0"])
    space = fields.get("space", "right-anterior-superior").lower()
    _expect(path, "space", space, NRRD_SPACES)
    shape = tuple(map(int, fields["sizes"].split()))
    if len(shape) != rank:
        raise unreadable(path, f"{len(shape)} sizes for {rank} dimensions")
    if "space directions" in fields:
        vectors = re.findall(r"\(([^)]*)\)", fields["space directions"])
        if len(vectors) != rank:
            raise InputError(
                path,
                found="an axis without a direction (channels, time)",
                expected="spatial axes only",
                remedy="Save one channel or time point per file.",
            )
        steps = np.stack([_numbers(path, vector, None) for vector in vectors])
    else:
        spacing = _numbers(path, fields.get("spacings", "1 " * rank), rank)
        steps = np.diag(spacing)
    origin = fields.get("space origin", "(" + ",".join("0" * steps.shape[1]) + ")")
    return Header(
        shape=shape,
        dtype=np.dtype(kinds[fields["type"].lower()]).newbyteorder(
            ">" if fields.get("endian", "little").lower() == "big" else "<"
        ),
        affine=_affine(steps, _numbers(path, origin.strip("()"), None), NRRD_SPACES[space]),
        compressed=encoding != "raw",
        data_file=fields.get("data file", fields.get("datafile")),
    )


def _rank(path, text):
    rank = int(text)
    if not 2 <= rank <= 4:
        raise unreadable(path, f"{rank} dimensions")
    return rank


def _numbers(path, text, count):
    values = np.array([float(word) for word in text.replace(",", " ").split()])
    if count is not None and len(values) != count:
        raise unreadable(path, f"{len(values)} numbers where {count} belong: {text!r}")
    return values


def _affine(steps, origin, to_ras):
    """steps: (axes, space axes), the way in mm to the next voxel along each axis."""
    axes, space = min(steps.shape[0], 3), min(steps.shape[1], 3)
    affine = np.eye(4)
    affine[:space, :axes] = steps[:axes, :space].T
    affine[:space, 3] = origin[:space]
    affine[:3] *= np.array(to_ras)[:, None]
    return affine


def _expect(path, field, found, allowed):
    if found not in allowed:
        raise InputError(
            path,
            found=f"{field} {found}",
            expected=" or ".join(allowed) if len(allowed) < 8 else "a type of real number",
            remedy="Save the image again as grey values, or as NIfTI.",
        )
