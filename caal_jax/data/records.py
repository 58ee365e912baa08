"""Cases as records and back: one record per image or slice, in the type of the source.

A folder of prepared records is a data set of TensorFlow Datasets (array_record files, features.json
and dataset_info.json), readable without TensorFlow and without this package. Beside the records
`cases.jsonl` has a line per case, in the order of its records, so that a training set can be
planned without reading an image, and SHA256SUMS the checksums.
"""

import functools
import json
from pathlib import Path

import numpy as np

from caal_jax.data.case import Case, DataSet, Entry, Geometry
from caal_jax.data.facts import SliceFacts, slice_facts, slice_positions
from caal_jax.data.split import SPLITS, hold_out
from caal_jax.errors import InputError

CASES, ABOUT, SUMS, INFO = "cases.jsonl", "about.json", "SHA256SUMS", "dataset_info.json"
VERSION = "1.0.0"
PIXELS = "image/value"  # the name that features.Tensor stores them under
REMEDY = "Prepare it again: python -m caal_jax.data.prepare."


def tensorflow_datasets():
    """The library, which is an optional part of the installation."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            "prepared records",
            found="no tensorflow-datasets",
            expected="the optional reader of records (it does not need TensorFlow)",
            remedy="Run: pip install 'caal_jax[records]'.",
        ) from error
    return tfds


def record_features(dtype):
    """The features of a record.

    image: (H, W, C) of `dtype`. mask: (H, W) uint8, 0 or 1; 0 x 0 for normal cases and where there
    is no pixel truth. label: 1 abnormal, 0 normal, -1 unknown. slice: index in the case's volume,
    position: the same from 0 to 1. spacing_mm: ([slice,] row, column).
    """
    features = tensorflow_datasets().features
    return features.FeaturesDict(
        {
            # Plain bytes: the records themselves are compressed.
            "image": features.Tensor(
                shape=(None, None, None), dtype=np.dtype(dtype).type, encoding="bytes"
            ),
            "mask": features.Tensor(shape=(None, None), dtype=np.uint8, encoding="zlib"),
            "case_id": features.Text(),
            "patient": features.Text(),
            "kind": features.Text(),
            "label": features.Scalar(dtype=np.int64),
            "slice": features.Scalar(dtype=np.int64),
            "position": features.Scalar(dtype=np.float32),
            "spacing_mm": features.Tensor(shape=(None,), dtype=np.float32),
        }
    )


def record_serialiser(dtype):
    """A function from an example to the bytes of its record, the same in every process."""
    features = record_features(dtype)
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    serialiser = ExampleSerializer(features.get_serialized_info())

    def serialise(example):
        image = example["image"]
        encoded = features.encode_example({**example, "image": image[:0]})
        encoded["image"]["shape"] = image.shape
        message = serialiser.get_tf_example(encoded)
        del message.features.feature[PIXELS]
        rest = message.SerializeToString(deterministic=True)
        return b"".join([rest, *_pixels(memoryview(image.reshape(-1).view(np.uint8)))])

    return serialise


def _pixels(values):
    """The bytes of a `tf.train.Example` with pixels alone, in pieces.

    Two messages one after the other are one with the fields of both: the way to a record in which
    pixels are copied once. The library copies them four times.
    """
    pieces = [values]
    # Outwards: a list of bytes, the feature, the value and then the key of an entry of the map.
    for tag in (b"\x0a", b"\x0a", b"\x12"):
        pieces = _tagged(tag, pieces)
    pieces = [*_tagged(b"\x0a", [PIXELS.encode()]), *pieces]
    # The entry of the map, the map.
    return _tagged(b"\x0a", _tagged(b"\x0a", pieces))


def _tagged(tag, pieces):
    """A field of a protocol buffer: tag, length in groups of seven bits, content."""
    length, groups = sum(map(len, pieces)), bytearray()
    while length > 127:
        groups.append(length & 127 | 128)
        length >>= 7
    groups.append(length)
    return [tag + groups, *pieces]


def case_examples(case, dtype):
    """Yields the examples of a case, first slice first.

    Raises: InputError where `dtype` cannot hold the image's values.
    """
    if not np.can_cast(case.image.dtype, dtype, "safe"):
        raise InputError(
            case.geometry.path or case.case_id,
            found=f"values of type {case.image.dtype}",
            expected=f"{dtype}, as the data set is published",
            remedy="Use the original file.",
        )
    slices = case.image if case.is_volume else case.image[None]
    positions = slice_positions(case)
    has_truth = bool(case.label) and case.mask is not None
    for index, image in enumerate(slices):
        mask = np.zeros((0, 0), bool)
        if has_truth:
            mask = case.mask[index] if case.is_volume else case.mask
        yield {
            "image": np.ascontiguousarray(image, dtype),
            "mask": mask.astype(np.uint8),
            "case_id": case.case_id,
            "patient": case.patient or case.case_id,
            "kind": case.kind,
            "label": -1 if case.label is None else int(case.label),
            "slice": index,
            "position": float(positions[index]),
            "spacing_mm": np.array(case.geometry.spacing_mm, np.float32),
        }


def case_line(case):
    """What `cases.jsonl` says of a case, but for the place of its records."""
    geometry = case.geometry
    return {
        "case_id": case.case_id,
        "patient": case.patient or case.case_id,
        "label": case.label,
        "kind": case.kind,
        "has_mask": case.mask is not None,
        "shape": case.image.shape,
        "positions": case.positions,
        "spacing_mm": geometry.spacing_mm,
        "slice_axis": geometry.slice_axis,
        "affine": None if geometry.affine is None else np.asarray(geometry.affine).tolist(),
        "facts": slice_facts(case),
    }


class RecordEntry(Entry):
    """A case in records.

    line: its line of `cases.jsonl`; records: the `Records` of its split.
    """

    def __init__(self, line, records):
        super().__init__(line["case_id"], functools.partial(_read_case, line, records))
        # The base class is frozen, and so stays this one after its construction.
        object.__setattr__(self, "line", line)
        object.__setattr__(self, "records", records)

    @property
    def facts(self):
        return SliceFacts(*self.line["facts"])


class Records:
    """The decoded examples of a split; its files are opened on first use.

    Raises: InputError then, if the folder's description of them is damaged.
    """

    def __init__(self, folder, split):
        self._folder, self._split = folder, split

    def read(self, indices):
        """The examples of several indices, as a list."""
        return self._source.__getitems__([int(index) for index in indices])

    @functools.cached_property
    def _source(self):
        tfds = tensorflow_datasets()
        try:
            return tfds.builder_from_directory(self._folder).as_data_source(self._split)
        except Exception as error:  # damaged descriptions raise nearly everything in the library
            raise InputError(
                self._folder,
                found=f"records that cannot be opened ({type(error).__name__}: {error})",
                expected="prepared records",
                remedy=REMEDY,
            ) from error


def find_prepared(root, name, variant=""):
    """The folder of prepared records at or below a folder, or None.

    variant: the part of the set; with "", records of any part will do where `root` is their folder.
    Raises: InputError if the records there are those of another set or part, or nothing says which.
    """
    root, inner = Path(root), Path(variant, VERSION)
    for folder in (root, root / VERSION, root / inner, root / name / inner):
        if (folder / INFO).is_file():
            _check_identity(folder, name, variant)
            return folder
    return None


def _check_identity(folder, name, variant):
    try:
        info = json.loads((folder / INFO).read_text())
        own = (info["name"], info.get("configName", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            folder / INFO,
            found=f"a damaged description ({error})",
            expected="what tells the data set",
            remedy=REMEDY,
        ) from error
    if own != (name, variant or own[1]):
        raise InputError(
            folder,
            found=f"records of {'/'.join(filter(None, own))}",
            expected="/".join(filter(None, (name, variant))),
            remedy="Point data_dir at the folder of its records, or use the config of these.",
        )


def read_prepared(folder, *, validation_fraction=0.2, seed=0):
    """The `DataSet` of a folder of prepared records.

    Validation patients are the publishers', or a share of the training patients drawn by `seed`,
    the same as from the raw files.
    Raises: InputError if a file of the folder is missing or has another size than it was made with.
    """
    about, lines = _read_lines(folder)
    records = {split: Records(folder, split) for split in SPLITS}
    parts = {split: [] for split in SPLITS}
    for line in lines:
        parts[line["split"]].append(RecordEntry(line, records[line["split"]]))
    if not parts["validation"]:
        patients = [entry.line["patient"] for entry in parts["train"]]
        held_out = hold_out(patients, fraction=validation_fraction, seed=seed)
        train, parts["train"] = parts["train"], []
        for entry in train:
            part = "validation" if entry.line["patient"] in held_out else "train"
            parts[part].append(entry)
    return DataSet(
        name=about["name"],
        **parts,
        stamp=about["stamp"],
        test_has_masks=about["test_has_masks"],
        notes=(*about["notes"], "Read from prepared records."),
    )


def _read_lines(folder):
    try:
        about = json.loads((folder / ABOUT).read_text())
        lines = [json.loads(line) for line in (folder / CASES).read_text().splitlines()]
        sizes = {name: (folder / name).stat().st_size for name in about["sizes"]}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            folder,
            found=f"an incomplete folder ({error})",
            expected="prepared records",
            remedy=REMEDY,
        ) from error
    changed = [name for name, size in about["sizes"].items() if sizes[name] != size]
    if changed:
        raise InputError(
            folder / changed[0],
            found=f"{sizes[changed[0]]} bytes",
            expected=f"{about['sizes'][changed[0]]}",
            remedy=REMEDY,
        )
    return about, lines


def _read_case(line, records):
    examples = records.read(range(line["first_record"], line["first_record"] + line["num_records"]))
    volume = len(line["shape"]) == 4
    shape = tuple(line["shape"][:-1])
    images = [example["image"] for example in examples]
    mask = np.zeros(shape, bool) if line["has_mask"] else None
    if line["label"] and line["has_mask"]:
        mask = np.stack([example["mask"] for example in examples]).astype(bool).reshape(shape)
    affine = line["affine"]
    return Case(
        case_id=line["case_id"],
        image=np.stack(images) if volume else images[0],
        geometry=Geometry(
            tuple(line["spacing_mm"]),
            line["slice_axis"],
            None if affine is None else np.array(affine),
        ),
        mask=mask,
        label=line["label"],
        kind=line["kind"],
        patient=line["patient"],
        positions=None if line["positions"] is None else tuple(line["positions"]),
    )
