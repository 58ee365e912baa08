"""JSRT: chest films of the Japanese Society of Radiological Technology, with and without a nodule.

Shiraishi et al., American Journal of Roentgenology 174, 2000.
"""

import os
import re
from pathlib import Path

import numpy as np

from caal_jax.data.case import Case, DataSet, Entry, Geometry
from caal_jax.data.public.tables import read_text
from caal_jax.data.public.truth import disc_mask
from caal_jax.data.readers import existing_folder, refuse_folder
from caal_jax.data.split import MIN_TRAIN, TEST_SEED, hold_out
from caal_jax.errors import InputError

SIDE, HIGHEST, SPACING_MM = 2048, 4095, 0.175
TABLE = "CLNDAT_EN.txt"
LAYOUT = f"Point it at the folder with JPCNN001.IMG, JPCLN001.IMG and so on, and {TABLE}."
TEST_SHARE_OF_NORMALS = 0.2


def jsrt(root, *, validation_fraction=0.2, seed=0):
    """JSRT in its public layout: the .IMG files anywhere below `root`, and CLNDAT_EN.txt.

    Test cases are all films with a nodule and a fifth of the others; each film is a patient. The
    truth is the disc that the table gives, and `kind` its subtlety from 1 (extremely subtle) to 5
    (obvious). Films hold density, high where dark, so values v become 4095 - v (uint16).
    Raises: InputError if the table or all normal films are missing, or a film is there twice;
    loading raises it for a film of a wrong size or with values above 12 bits.
    """
    root = existing_folder(root, where="data_dir", remedy=LAYOUT)
    films, table = _find(root)
    nodules, notes = read_nodules(table), []
    normals = sorted(name for name in films if name.startswith("JPCNN"))
    abnormal = sorted(name for name in films if name.startswith("JPCLN"))
    test_normals = hold_out(normals, fraction=TEST_SHARE_OF_NORMALS, seed=TEST_SEED)
    rest = [name for name in normals if name not in test_normals]
    if len(rest) < MIN_TRAIN:
        raise InputError(
            f"data_dir {root}",
            found=f"{len(normals)} films without a nodule",
            expected=f"at least {MIN_TRAIN + 1}, JPCNN001.IMG to JPCNN093.IMG",
            remedy=LAYOUT,
        )
    lost = [name for name in abnormal if name not in nodules]
    if lost:
        notes.append(
            f"{len(lost)} films with a nodule, the first being {lost[0]}, have no usable line in "
            f"{table.name} and count for image scores only."
        )
    validation = hold_out(rest, fraction=validation_fraction, seed=seed)
    return DataSet(
        name="JSRT",
        train=[_entry(films[name], None) for name in rest if name not in validation],
        validation=[_entry(films[name], None) for name in rest if name in validation],
        test=[_entry(films[name], None) for name in sorted(test_normals)]
        + [_entry(films[name], nodules.get(name)) for name in abnormal],
        test_has_masks=len(lost) < len(abnormal),
        notes=tuple(notes),
    )


def read_nodules(path):
    """The usable lines of CLNDAT_EN.txt: {film: (subtlety, size in mm, x, y)}, x being a column.

    Copies of the table differ in line ends and separators, so only file names and the order of
    the fields are relied on: subtlety, size, age, sex, x, y. Unknown ages (?) do not matter.
    Raises: InputError as `read_text`, or for two usable lines of one film that differ.
    """
    nodules = {}
    pieces = re.split(r"(JPCLN\d{3})(?:\.IMG)?", read_text(path), flags=re.IGNORECASE)
    for name, line in zip(pieces[1::2], pieces[2::2], strict=True):
        fields = re.findall(r"\?|\d+(?:\.\d+)?|[A-Za-z]+", line)[:6]
        try:
            subtlety, size_mm, _, _, x, y = fields
            found = int(subtlety), float(size_mm), float(x), float(y)
        except ValueError:
            continue
        if not (1 <= found[0] <= 5 and found[1] > 0 and max(found[2:]) < SIDE):
            continue
        if nodules.setdefault(name.upper(), found) != found:
            raise InputError(
                path,
                found=f"two lines for {name.upper()} that differ",
                expected="each film once",
                remedy="Delete the wrong one.",
            )
    return nodules


def read_film(path):
    """(2048, 2048, 1) uint16, 0 to 4095, high where bright. Raises `InputError`."""
    try:
        num_bytes = path.stat().st_size
        data = path.read_bytes() if num_bytes == 2 * SIDE * SIDE else b""
    except OSError as error:
        raise InputError(
            path,
            found=f"a film that cannot be read ({error.strerror})",
            expected="a readable file",
            remedy="Copy the file again.",
        ) from error
    if len(data) != 2 * SIDE * SIDE:
        raise InputError(
            path,
            found=f"{num_bytes} bytes",
            expected=f"{2 * SIDE * SIDE} (2048 x 2048 big-endian 16-bit values, no header)",
            remedy="Copy the file again.",
        )
    image = np.frombuffer(data, ">u2").reshape(SIDE, SIDE, 1)
    if image.max() > HIGHEST:
        raise InputError(
            path,
            found=f"the value {image.max()}",
            expected="12 bits, big-endian: at most 4095",
            remedy="Use the original file; this one seems to have its bytes swapped.",
        )
    return (HIGHEST - image).astype(np.uint16)


def _find(root):
    films, table = {}, root / TABLE
    for parent, folders, names in os.walk(root, onerror=refuse_folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if name.upper() == TABLE.upper():
                table = path
            elif re.fullmatch(r"JPC[LN]N\d{3}\.IMG", name, flags=re.IGNORECASE):
                if path.stem.upper() in films:
                    raise InputError(
                        path,
                        found=f"a second file of that name, after {films[path.stem.upper()]}",
                        expected="each film once",
                        remedy="Remove one of them.",
                    )
                films[path.stem.upper()] = path
    return films, table


def _entry(path, nodule):
    name = path.stem.upper()
    abnormal = name.startswith("JPCLN")

    def load():
        image = read_film(path)
        mask = None if abnormal else np.zeros(image.shape[:2], bool)
        if nodule:
            _, size_mm, x, y = nodule
            mask = disc_mask(image.shape[:2], x=x, y=y, radius_px=size_mm / 2 / SPACING_MM)
        return Case(
            case_id=name,
            image=image,
            geometry=Geometry((SPACING_MM, SPACING_MM), path=path),
            mask=mask,
            label=int(abnormal),
            kind=f"subtlety {nodule[0]}" if nodule else "nodule" if abnormal else "normal",
            patient=name,
        )

    return Entry(name, load, (path,))
