"""Real images through the public paths, every one of them: a table of what was found.

python benchmarks/real_sets.py --data=../shared/data

Public sets go through their readers, into records and back; single volumes and images of no set
with a reader through a CSV table, as a user's own would. A cell "equal" says that every case read
from records is, to the last bit, the one read from the download.
"""

import argparse
import csv
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from caal_jax.data import load_dataset, prepare
from caal_jax.data.doctor import examine, sizes, times_mm
from caal_jax.data.public import SETS
from caal_jax.errors import InputError

# (name, folder of the download, dataset of the config)
PUBLIC = (
    ("BUSI", "BUSI", "busi"),
    ("LGG (kaggle_3m)", "LGG", "lgg"),
    ("head CT", "head_ct", "head_ct"),
    ("ChestX-ray14", "NIH_ChestXray14", "chestxray14"),
    ("hazelnut, MVTec AD's layout", "hazelnut_toy", "mvtec"),
    ("hippocampus (Decathlon)", "Task04_Hippocampus", "hippocampus"),
)
# (name, [(split, kind, files, masks)]); files and masks by pattern, in order
OWN = (
    (
        "volumes: MNI152, CT; BraTS, MS lesions",
        [
            ("train", "", "niivue_volumes/*.nii.gz", ""),
            ("test", "glioma", "brats2015*/*/*/Flair_*.nii.gz", "brats2015*/*/*/OTMulti*.nii.gz"),
            ("test", "lesions", "open_ms*/**/FLAIR_*.nii.gz", "open_ms*/**/GOLD_*.nii.gz"),
        ],
    ),
    (
        "images: figshare tumours, chest films",
        [
            ("train", "", "NIH_*/images/00000005_*.png", ""),
            ("test", "tumour", "figshare*/images/*.png", "figshare*/masks/*.png"),
            ("test", "finding", "NIH_*/images/0000000[14]_*.png", ""),
        ],
    ),
)


def write_table(path, data, lines):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "split", "kind", "mask"))
        for split, kind, images, masks in lines:
            images = sorted(data.glob(images))
            masks = sorted(data.glob(masks)) if masks else [""] * len(images)
            for image, mask in zip(images, masks, strict=True):
                writer.writerow((image, split, kind, mask))
    return path


def config(dataset, data_dir):
    fields = {"dataset": dataset, "data_dir": str(data_dir), "validation_fraction": 0.2, "seed": 0}
    return ConfigDict(fields)


def entries(data):
    return {
        (split, entry.case_id): entry
        for split in ("train", "validation", "test")
        for entry in getattr(data, split)
    }


def through_records(one, home):
    """Whether the cases of a public set come back from its records as they went in."""
    if one.dataset not in SETS:
        return "no records"
    folder = prepare.prepare(one.dataset, Path(one.data_dir), home)
    direct, again = (
        entries(load_dataset(config(one.dataset, at))) for at in (one.data_dir, folder)
    )
    # Constant images and the like do not become records.
    equal = [same(direct[key].load(), entry.load()) for key, entry in again.items()]
    if not all(equal):
        return f"{len(equal) - sum(equal)} DIFFER"
    left = len(direct) - len(equal)
    return f"{len(equal)} equal" + (f", {left} unusable" if left else "")


def same(one, other):
    masks = [one.mask, other.mask]
    return np.array_equal(one.image, other.image) and (
        one.mask is other.mask is None or np.array_equal(*masks)
    )


def describe(name, one, home):
    try:
        data = load_dataset(one)
    except InputError as error:
        print(f"| {name} | refused: found {error.found}; expected {error.expected} |" + " |" * 7)
        return
    found, kinds, masks = examine(one), Counter(), 0
    for entry in data.test:
        case = entry.load()
        kinds[case.kind] += 1
        masks += bool(case.label) and case.mask is not None
    warnings = len(found.problems) - found.num_errors
    cells = (
        name,
        " / ".join(map(str, found.counts.values())),
        ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
        masks,
        sizes([fact.shape for fact in found.facts]),
        ", ".join(sorted({f"{fact.dtype} x {fact.channels}" for fact in found.facts})),
        ", ".join(sorted({times_mm(fact.spacing_mm) for fact in found.facts})),
        f"{found.num_errors} / {warnings}",
        through_records(one, home),
    )
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the downloads")
    data = parser.parse_args().data.resolve()
    logging.set_verbosity(logging.ERROR)
    heads = (
        "set",
        "train / validation / test",
        "test cases",
        "with truth",
        "size",
        "type x channels",
        "spacing",
        "errors / warnings",
        "through records",
    )
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        for name, folder, dataset in PUBLIC:
            describe(name, config(dataset, data / folder), home)
        for number, (name, lines) in enumerate(OWN):
            table = write_table(home / f"{number}.csv", data, lines)
            describe(name, config("folder", table), home)


if __name__ == "__main__":
    main()
