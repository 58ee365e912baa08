"""A folder of volumes in, MOOD's predictions out: one file per volume, whatever happens.

Called by the four entry scripts with a finished run of the same region beside them.
"""

import argparse
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from caal_jax import files
from caal_jax.data import slice_axis
from caal_jax.data.readers import read_image
from caal_jax.errors import InputError
from caal_jax.localise import FinishedRun


def predict_folder(run, mode, source, output):
    """Writes a prediction per file of `source`; returns the messages of those that failed.

    mode: "pixel" writes <name>, a NIfTI map in [0, 1] on the input's grid; "sample" writes
    <name>.txt with a number in [0, 1]. A volume that cannot be read gets no map and the score 0,
    which the official evaluation counts as all zeros: one broken file must not cost the others.
    """
    paths = sorted(path for path in source.iterdir() if path.is_file())
    failures = []
    for path in paths:
        score = 0.0
        try:
            case = read_image(path, slice_axis=slice_axis(run.config))
            found = run.predict(case)
        except InputError as error:
            failures.append(str(error))
            print(f"failed: {error}", file=sys.stderr, flush=True)
        else:
            score = float(np.clip(np.nan_to_num(found.score), 0, 1))
            if mode == "pixel":
                write_volume(output / path.name, found.anomaly, case)
        if mode == "sample":
            files.write_text(output / f"{path.name}.txt", f"{score:.9g}")
        print(f"{path.name}: {score:.4f}", flush=True)
    if len(failures) == len(paths):
        raise InputError(
            source,
            found=f"no usable volume among {len(paths)} file(s)",
            expected="NIfTI volumes",
            remedy="Check the folder that is mounted as the input.",
        )
    return failures


def write_volume(path, anomaly, case):
    """A map (D, H, W), slices first, as NIfTI with the input's axes, shape and affine."""
    volume = np.moveaxis(anomaly, 0, case.geometry.slice_axis)
    # The evaluation reads float16, clips, and does not survive NaN.
    volume = np.clip(np.nan_to_num(volume), 0, 1).astype(np.float32)
    image = nib.Nifti1Image(
        volume.reshape(nib.load(case.geometry.path).shape), case.geometry.affine
    )
    nib.save(image, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", required=True, choices=("pixel", "sample"))
    parser.add_argument("--run", required=True, type=Path, help="the workdir of a finished run")
    parser.add_argument("--input", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    try:
        if not arguments.input.is_dir():
            raise InputError(
                arguments.input,
                found="no folder",
                expected="the volumes to judge",
                remedy="Mount them there: docker run -v FOLDER:/mnt/data ...",
            )
        run = FinishedRun.load(arguments.run)
        predict_folder(run, arguments.mode, arguments.input, files.folder(arguments.output))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
