"""Which anomalies a finished run misses: its test cases in thirds of the lesion's contrast.

python benchmarks/by_contrast.py --workdir=runs/lgg

Contrast: the lesion's mean intensity less that of the rest of the foreground, in standard
deviations of that rest. Prints, for each third, the median over cases of the pixel AP of the case
alone, and of its ratio to the lesion's share of the image.
"""

import argparse

import numpy as np

from caal_jax import metrics
from caal_jax.data import load_dataset
from caal_jax.errors import InputError
from caal_jax.localise import FinishedRun


def case_row(run, case):
    """(contrast, pixel AP, share of the image) of a case."""
    found = run.predict(case)
    image = case.image.astype(np.float64).mean(axis=-1)
    rest = image[found.foreground & ~case.mask]
    contrast = (image[case.mask].mean() - rest.mean()) / rest.std()
    precision = metrics.average_precision(found.anomaly.ravel(), case.mask.ravel())
    return contrast, precision, case.mask.mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    run = FinishedRun.load(parser.parse_args().workdir)
    rows = []
    for entry in load_dataset(run.config).test:
        try:
            case = entry.load()
            if case.mask is not None and case.mask.any():
                rows.append(case_row(run, case))
        except InputError as error:
            print(f"left out: {error}")
    rows = np.array(sorted(rows))
    print("| contrast | cases | median pixel AP | median of its ratio to the share |")
    print("| --- | --- | --- | --- |")
    for third in np.array_split(rows, 3):
        contrast, precision, share = third.T
        print(
            f"| {contrast[0]:.2f} to {contrast[-1]:.2f} | {len(third)} "
            f"| {np.median(precision):.3f} | {np.median(precision / share):.1f} |"
        )


if __name__ == "__main__":
    main()
