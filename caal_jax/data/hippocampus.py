"""The hippocampus set of the Medical Segmentation Decathlon (Task04), as healthy volumes."""

import dataclasses

from caal_jax.data.folder import divide
from caal_jax.data.readers import existing_folder, file_entry, image_files, stem_of
from caal_jax.data.split import MIN_TRAIN
from caal_jax.errors import InputError

LAYOUT = "Point it at the unpacked Task04_Hippocampus, with imagesTr/hippocampus_001.nii.gz etc."


def hippocampus(root, *, slice_axis=2, validation_fraction=0.2, seed=0):
    """MRI crops around the hippocampus, about 35 x 50 x 35 voxels of 1 mm, from `imagesTr/`.

    Every volume counts as healthy and as a patient of its own; its label of the hippocampus is not
    read. Held-out volumes get planted anomalies. slice_axis: the axis of the files that comes
    first. Raises: InputError if the folder is missing or holds fewer than two volumes.
    """
    home = existing_folder(root, where="data_dir", remedy=LAYOUT) / "imagesTr"
    paths = image_files(existing_folder(home, where="data_dir", remedy=LAYOUT))
    if len(paths) < MIN_TRAIN:
        raise InputError(
            home, found=f"{len(paths)} volumes", expected=f"at least {MIN_TRAIN}", remedy=LAYOUT
        )
    healthy = []
    for path in paths:
        name = stem_of(path)
        entry = file_entry(path, case_id=name, patient=name, slice_axis=slice_axis)
        healthy.append((name, entry))
    divided = divide(healthy, None, validation_fraction=validation_fraction, seed=seed)
    return dataclasses.replace(divided, name="hippocampus MRI")
