"""The built-in phantom: layout, background, variety, and the split it hands out."""

import numpy as np
import pytest

from caal_jax.data.phantom import SLICE_AXES, make_volume, phantom_dataset
from caal_jax.data.planted import KINDS
from caal_jax.errors import InputError

REGIONS = tuple(SLICE_AXES)


@pytest.fixture(scope="module")
def volumes():
    return {region: [make_volume(s, region=region, size=48) for s in (0, 1)] for region in REGIONS}


@pytest.fixture(scope="module")
def data_set():
    return phantom_dataset(
        region="abdomen", size=32, num_train=3, num_validation=2, num_test=32, seed=7
    )


@pytest.fixture(scope="module")
def test_cases(data_set):
    return [entry.load() for entry in data_set.test]


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("size", [32, 48, 50])
def test_shape_type_and_range(region, size):
    volume = make_volume(3, region=region, size=size)
    assert volume.shape == (size, size, size)
    assert volume.dtype == np.float32
    assert volume.min() >= 0
    assert volume.max() <= 1
    assert volume.max() > 0.6


@pytest.mark.parametrize("region", REGIONS)
def test_same_seed_same_volume_other_seed_other_anatomy(region, volumes):
    first, second = volumes[region]
    np.testing.assert_array_equal(make_volume(0, region=region, size=48), first)
    # Far more than noise: organs lie elsewhere.
    body = (first > 0.1) | (second > 0.1)
    assert np.mean(np.abs(first - second)[body] > 0.1) > 0.15


@pytest.mark.parametrize("region", REGIONS)
def test_the_same_subject_at_another_resolution_has_the_same_proportions(region):
    shares = [np.mean(make_volume(5, region=region, size=n) > 0.1) for n in (32, 64)]
    assert shares[0] == pytest.approx(shares[1], rel=0.06)


def test_brain_background_is_exactly_zero_and_surrounds_the_brain(volumes):
    for volume in volumes["brain"]:
        for axis in range(3):
            assert not np.take(volume, [0, -1], axis=axis).any()
        assert 0.12 < np.mean(volume > 0) < 0.3


def test_brain_has_three_tissues(volumes):
    tissue = volumes["brain"][0][volumes["brain"][0] > 0]
    fluid, grey, white = tissue < 0.3, (tissue > 0.4) & (tissue < 0.56), tissue > 0.62
    for part in (fluid, grey, white):
        assert part.mean() > 0.1


def test_brain_left_mirrors_right_but_not_exactly(volumes):
    for volume in volumes["brain"]:
        brain = volume > 0
        mirrored = brain[::-1]
        overlap = (brain & mirrored).sum() / (brain | mirrored).sum()
        assert 0.75 < overlap < 0.995
        # White matter fills both halves alike, and so do all paired structures inside it.
        left, right = (np.mean(half[half > 0] > 0.62) for half in (volume[:24], volume[24:]))
        assert left == pytest.approx(right, rel=0.25)
        # Superior and inferior differ much more than left and right do.
        turned = brain[:, :, ::-1]
        assert (brain & turned).sum() / (brain | turned).sum() < overlap - 0.05


def test_abdomen_air_is_dark_but_noisy_and_lies_beside_the_body_only(volumes):
    for volume in volumes["abdomen"]:
        sides = np.concatenate([np.take(volume, [0, -1], axis=a).ravel() for a in (0, 2)])
        assert sides.max() <= 0.03  # MOOD's foreground rule grows air up to here from a corner
        assert sides.std() > 0
        # The body leaves the field of view at head and feet.
        for end in (0, -1):
            assert np.mean(volume[:, end] > 0.1) > 0.2


def test_abdomen_axes_are_right_superior_posterior(volumes):
    for volume in volumes["abdomen"]:
        bone = volume > 0.66
        assert bone.nonzero()[2].mean() > 24 + 5  # the spine is at the back
        lungs = (volume > 0.05) & (volume < 0.18)
        assert lungs.nonzero()[1].mean() > 24 + 10
        # Between the diaphragm and the kidneys the liver fills the right side.
        upper = volume[:, 30:36, 12:28]
        solid = (upper > 0.44) & (upper < 0.62)
        assert solid[24:].mean() > 1.5 * solid[:24].mean()


def test_unusable_requests_say_what_to_do():
    with pytest.raises(InputError, match="'brain' or 'abdomen'"):
        make_volume(0, region="knee")
    with pytest.raises(InputError, match="at least 32"):
        make_volume(0, size=31)
    with pytest.raises(InputError, match="phantom region"):
        phantom_dataset(region="knee", size=32, num_train=1, num_validation=1, num_test=1, seed=0)


@pytest.mark.parametrize("region", REGIONS)
def test_case_layout(region):
    data_set = phantom_dataset(
        region=region, size=32, num_train=1, num_validation=0, num_test=0, seed=11
    )
    assert data_set.name == f"phantom-{region}"
    assert data_set.stamp == "phantom"
    (entry,) = data_set.train
    case = entry.load()
    volume = make_volume((11, 0, 0), region=region, size=32)
    assert case.case_id == entry.case_id == "train_00000"
    assert case.geometry.slice_axis == {"brain": 2, "abdomen": 1}[region]
    np.testing.assert_array_equal(
        np.moveaxis(case.image[..., 0], 0, case.geometry.slice_axis), volume
    )
    assert case.geometry.spacing_mm == (8.0, 8.0, 8.0)
    # The affine maps the file's own axes: its centre is the origin, its columns are as long as
    # the voxels, and it keeps handedness.
    affine = case.geometry.affine
    np.testing.assert_allclose(affine @ [15.5, 15.5, 15.5, 1], [0, 0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(affine[:3, :3].T @ affine[:3, :3], 64 * np.eye(3))
    assert np.linalg.det(affine[:3, :3]) > 0
    along_slices = affine[:3, case.geometry.slice_axis]
    np.testing.assert_array_equal(along_slices, [0, 0, 8])  # slices go up


def test_splits_are_disjoint_and_healthy(data_set, test_cases):
    training = [entry.load() for entry in data_set.train + data_set.validation]
    cases = training + test_cases
    counts = {"train": 3, "validation": 2, "test": 32}
    ids = [f"{split}_{i:05d}" for split, count in counts.items() for i in range(count)]
    assert [case.case_id for case in cases] == ids
    assert len({case.patient for case in cases}) == 37
    assert all(case.label == 0 and not case.mask.any() for case in training)
    normal = [case.image for case in cases if case.label == 0]
    assert len({image.tobytes() for image in normal}) == len(normal)


def test_more_training_subjects_leave_the_test_split_as_it_is(test_cases):
    larger = phantom_dataset(
        region="abdomen", size=32, num_train=9, num_validation=4, num_test=32, seed=7
    )
    np.testing.assert_array_equal(larger.test[0].load().image, test_cases[0].image)


def test_half_of_the_test_split_is_abnormal_in_every_kind(test_cases):
    abnormal = [case for case in test_cases if case.label == 1]
    assert len(abnormal) == 16
    assert sorted(case.kind for case in abnormal) == sorted(2 * KINDS)
    for case in test_cases:
        assert case.mask.shape == case.image.shape[:-1]
        assert case.mask.dtype == bool
        assert case.mask.any() == (case.label == 1)
        assert (case.kind == "normal") == (case.label == 0)


def test_test_masks_tell_where_the_healthy_subject_was_changed(test_cases):
    for case in test_cases:
        number = int(case.case_id.removeprefix("test_"))
        healthy = make_volume((7, 2, number), region="abdomen", size=32)
        healthy = np.moveaxis(healthy, 1, 0)[..., np.newaxis]
        np.testing.assert_array_equal((case.image != healthy).any(axis=-1), case.mask)


def test_loading_twice_gives_the_same_case(data_set, test_cases):
    again = data_set.test[0].load()
    np.testing.assert_array_equal(again.image, test_cases[0].image)
    np.testing.assert_array_equal(again.mask, test_cases[0].mask)
