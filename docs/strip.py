"""The picture on top of the README: cases of an evaluated run on the phantom, found and missed.

python docs/strip.py --workdir=runs/mood --cases=36,22,27,3 --output=docs/strip.png
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from ml_collections import ConfigDict

from caal_jax.data import load_dataset, slice_axis

COLUMNS = ("image", "anomaly probability", "uncertainty", "truth")


def strip(workdir, numbers, output):
    """Writes a row per test case: the slice with most of the anomaly, and the maps of the run."""
    workdir = Path(workdir)
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    lines = (workdir / "predictions" / "scores.csv").read_text().splitlines()
    names = lines[0].split(",")
    table = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    entries = load_dataset(config).test
    figure, grid = plt.subplots(
        len(numbers), 4, figsize=(6.4, 1.68 * len(numbers) + 0.25), squeeze=False
    )
    for axes, number in zip(grid, numbers, strict=True):
        case = entries[number].load()
        at = int(np.argmax(case.mask.sum((1, 2)))) if case.mask.any() else len(case.image) // 2
        anomaly, uncertainty = (
            nib.load(workdir / "predictions" / f"{case.case_id}_{kind}.nii.gz").get_fdata()
            for kind in ("anomaly", "uncertainty")
        )
        anomaly, uncertainty = (
            np.moveaxis(values, slice_axis(config), 0)[at] for values in (anomaly, uncertainty)
        )
        axes[0].imshow(case.image[at, ..., 0], cmap="gray")
        axes[1].imshow(anomaly, cmap="inferno", vmin=0, vmax=1)
        axes[2].imshow(uncertainty, cmap="viridis", vmin=0, vmax=0.25)
        axes[3].imshow(case.mask[at], cmap="gray", vmin=0, vmax=1)
        axes[0].set_ylabel(
            f"{case.kind.replace('_', ' ')}\n→ {table[number]['verdict']}", fontsize=8
        )
        for one in axes:
            one.set(xticks=[], yticks=[])
    for axes, title in zip(grid[0], COLUMNS, strict=True):
        axes.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--cases", required=True, help="numbers in the order of scores.csv")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    strip(arguments.workdir, [int(n) for n in arguments.cases.split(",")], arguments.output)


if __name__ == "__main__":
    main()
