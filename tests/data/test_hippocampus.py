"""The Decathlon's hippocampus set in its public layout."""

import nibabel as nib
import numpy as np
import pytest

from caal_jax.data import load_dataset
from caal_jax.defaults import training_config
from caal_jax.errors import InputError


def config_of(root):
    config = training_config()
    config.dataset, config.data_dir = "hippocampus", str(root)
    return config


def test_volumes_are_split_and_planted(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
        for number in range(10):
            values = 1000.0 * rng.random((12, 14, 16), np.float32)
            path = tmp_path / folder / f"hippocampus_{number:03d}.nii.gz"
            nib.save(nib.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    data = load_dataset(config_of(tmp_path))
    names = [entry.case_id for part in (data.train, data.validation, data.test) for entry in part]
    assert sorted(names) == [f"hippocampus_{number:03d}" for number in range(10)]
    assert (len(data.validation), len(data.test), data.stamp) == (2, 2, "planted")
    case = data.train[0].load()
    assert case.image.shape == (16, 12, 14, 1)
    assert case.geometry.spacing_mm == (3.0, 1.0, 2.0)
    assert (case.label, case.patient) == (0, case.case_id)


def test_a_folder_without_volumes_is_refused(tmp_path):
    with pytest.raises(InputError, match="imagesTr: found nothing; expected a folder"):
        load_dataset(config_of(tmp_path))
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(InputError, match="found 0 volumes; expected at least 2"):
        load_dataset(config_of(tmp_path))
    with pytest.raises(InputError, match="expected the folder of the hippocampus data"):
        load_dataset(config_of(""))
