"""The four real data sets, from tiny files in their public layouts."""

from pathlib import Path

import ml_collections
import nibabel as nib
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from caal_jax.data import load_dataset, read_scan
from caal_jax.data.busi import busi, near_duplicate_groups
from caal_jax.data.folder import folder
from caal_jax.data.lgg import lgg
from caal_jax.data.mood import mood
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="real images are not here")


def put(path, array=None, *, shape=(24, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is None:
        array = RNG.integers(0, 256, shape).astype(np.uint8)
    if path.name.endswith(".nii.gz"):
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 2, 3, 1])), path)
    else:
        Image.fromarray(array).save(path)


def ids(entries):
    return [entry.case_id for entry in entries]


def patients(entries):
    return {entry.load().patient for entry in entries}


def square(shape=(24, 30)):
    mask = np.zeros(shape, np.uint8)
    mask[4:9, 5:12] = 255
    return mask


# folder


def test_folder_of_mixed_formats_with_test_and_masks(tmp_path):
    for index in range(8):
        put(tmp_path / "normal" / f"{index}.{'png' if index % 2 else 'tif'}")
    put(tmp_path / "normal" / "v.nii.gz", shape=(9, 8, 7))
    put(tmp_path / "test" / "good" / "0.png")
    for kind, mask in [
        ("dent", "ground_truth/dent/0_mask.png"),
        ("scratch", "test/scratch_masks/0.png"),
        ("hole", "test/hole/0_mask.png"),
    ]:
        put(tmp_path / "test" / kind / "0.png")
        put(tmp_path / mask, square())
    put(tmp_path / "test" / "stain" / "0.png")
    data = folder(tmp_path)
    assert len(data.train) == 7
    assert len(data.validation) == 2
    assert not patients(data.train) & patients(data.validation)
    assert data.stamp == ""
    assert data.test_has_masks
    assert data.notes == (
        "1 of 4 abnormal test images have no mask and count for image scores only.",
    )
    cases = {entry.case_id: entry.load() for entry in data.test}
    assert sorted(cases) == ["dent-0", "good-0", "hole-0", "scratch-0", "stain-0"]
    assert [cases[f"{kind}-0"].kind for kind in ("dent", "good")] == ["dent", "normal"]
    for kind in ("dent", "scratch", "hole"):
        assert_array_equal(cases[f"{kind}-0"].mask, square() > 0)
        assert cases[f"{kind}-0"].label == 1
    assert cases["good-0"].label == 0
    assert not cases["good-0"].mask.any()
    assert cases["stain-0"].mask is None


def test_folder_split_depends_on_the_seed_alone(tmp_path):
    for index in range(12):
        put(tmp_path / "train" / "good" / f"{index}.png")
    first, again, other = (folder(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert ids(first.validation) == ids(again.validation)
    assert ids(first.validation) != ids(other.validation)


def test_folder_draws_one_test_split_for_all_seeds(tmp_path):
    for index in range(12):
        put(tmp_path / "train" / "good" / f"{index}.png")
    data = [folder(tmp_path, seed=seed) for seed in range(5)]
    assert {tuple(ids(one.test)) for one in data} == {tuple(ids(data[0].test))}
    for one in data:
        parts = [set(ids(part)) for part in (one.train, one.validation, one.test)]
        assert [len(part) for part in parts] == [8, 2, 2]
        assert len(set.union(*parts)) == 12


def test_folder_without_test_plants_into_held_out_images(tmp_path):
    y, x = np.indices((40, 40))
    for index in range(10):
        body = 120 * (np.hypot(y - 20, x - 20) < 15) + RNG.integers(0, 40, (40, 40))
        put(tmp_path / "normal" / f"{index}.png", body.astype(np.uint8))
    data = folder(tmp_path)
    assert data.stamp == "planted"
    assert data.test_has_masks
    sets = [set(ids(part)) for part in (data.train, data.validation)]
    held_out = {str(index) for index in range(10)} - sets[0] - sets[1]
    assert [len(part) for part in (*sets, data.test)] == [6, 2, 2]
    assert patients(data.test) == held_out
    assert "planted into 2 held-out images" in data.notes[0]


def test_folder_keeps_sub_folders_together_and_ids_apart(tmp_path):
    for patient in "abcde":
        for index in range(3):
            put(tmp_path / "normal" / patient / f"{index}.png")
    put(tmp_path / "normal" / "a" / "0.tif")
    put(tmp_path / "test" / "good" / "x.png")
    data = folder(tmp_path)
    everything = data.train + data.validation
    assert len(set(ids(everything))) == len(everything) == 16
    assert len(patients(data.train)) == 4
    assert not patients(data.train) & patients(data.validation)


def test_folder_knows_the_patients_of_training_in_the_test_split(tmp_path):
    def names(**folders):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for place, images in folders.items():
            for image in images.split():
                put(root / place.replace("_", "/") / f"{image}.png")
        data = folder(root, validation_fraction=0.0)
        return patients(data.train), sorted(entry.load().patient for entry in data.test)

    people = "ann/0 ann/1 bob/0 bob/1"
    train, test = names(normal=people, test_good="0 bob/x/0", test_lesion="ann/0 ann/1 eve/0")
    assert train == {"ann/", "bob/"}
    assert test == ["ann/", "ann/", "bob/", "eve/", "test/good-0"]
    # One sub-folder is a patient only where training has it.
    assert names(normal=people, test_lesion="ann/0 ann/1")[1] == ["ann/", "ann/"]
    assert names(normal=people, test_lesion="x/0 x/1")[1] == ["test/lesion-x-0", "test/lesion-x-1"]
    train, test = names(normal="ann/0 ann/1", test_lesion="ann/0")
    assert (train, test) == ({"ann-0", "ann-1"}, ["test/lesion-ann-0"])
    train, test = names(normal="0 1", test_good="0", test_lesion="0 1")
    assert (train, test) == ({"0", "1"}, ["test/good-0", "test/lesion-0", "test/lesion-1"])


def test_folder_of_two_has_no_validation(tmp_path):
    for index in range(2):
        put(tmp_path / "normal" / f"{index}.png")
    data = folder(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 0, 0)
    assert "too few" in data.notes[0]


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: found nothing; expected a folder\. Put"):
        folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"neither normal/ nor train/good/, but an empty folder"):
        folder(tmp_path)
    (tmp_path / "normal").mkdir()
    with pytest.raises(InputError, match="normal: found 0 images; expected at least 2"):
        folder(tmp_path)
    put(tmp_path / "normal" / "a.png")
    put(tmp_path / "normal" / "a_mask.png")
    with pytest.raises(InputError, match="normal: found 1 image; expected at least 2"):
        folder(tmp_path)
    put(tmp_path / "normal" / "b.png")
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="test: found no image"):
        folder(tmp_path)
    put(tmp_path / "test" / "a.png")
    with pytest.raises(InputError, match=r"a\.png: found an image directly in test/"):
        folder(tmp_path)


def test_mask_of_another_size_is_told_on_loading(tmp_path):
    for name in ("normal/a", "normal/b", "test/dent/0"):
        put(tmp_path / f"{name}.png")
    put(tmp_path / "ground_truth" / "dent" / "0_mask.png", square((24, 31)))
    (entry,) = folder(tmp_path).test
    with pytest.raises(InputError, match=r"0_mask\.png: found a mask of 24 x 31"):
        entry.load()


# MOOD


@pytest.fixture
def mood_root(tmp_path):
    shape = (20, 22, 24)
    grid = np.stack(np.indices(shape)) - np.array([10, 11, 12])[:, None, None, None]
    body = np.sqrt((grid**2).sum(axis=0)) < 9
    for index in range(10):
        volume = (body * (0.5 + 0.3 * RNG.random(shape))).astype(np.float32)
        put(tmp_path / "brain" / "brain_train" / f"{index:05d}.nii.gz", volume)
        put(tmp_path / "colon" / "colon_train" / f"{index:05d}.nii.gz", volume)
    labels = np.zeros(shape, np.uint8)
    labels[5:9, 6:8, 10:15] = 1
    for index, (pixel, sample) in enumerate([(labels, "1"), (labels * 0, "0\n"), (None, "1")]):
        name = f"{index:05d}.nii.gz"
        put(tmp_path / "brain" / "toy" / name, volume)
        if pixel is not None:
            put(tmp_path / "brain" / "toy_label" / "pixel" / name, pixel)
        text = tmp_path / "brain" / "toy_label" / "sample" / f"{name}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(sample)
    put(tmp_path / "brain" / "toy" / "00003.nii.gz", volume)
    return tmp_path


def test_mood_toy_and_planted(mood_root):
    data = mood(mood_root, region="brain")
    assert data.name == "MOOD brain"
    assert data.stamp == "planted"
    assert [len(part) for part in (data.train, data.validation, data.test)] == [6, 2, 5]
    assert not set(ids(data.train)) & set(ids(data.validation))
    assert not (set(ids(data.train)) | set(ids(data.validation))) & patients(data.test)
    toys = [entry.load() for entry in data.test[:3]]
    assert [toy.label for toy in toys] == [1, 0, 1]
    assert [toy.kind for toy in toys] == ["toy", "normal", "toy"]
    assert toys[0].image.shape == (24, 20, 22, 1)
    assert toys[0].mask.shape == (24, 20, 22)
    assert toys[0].mask[12, 6, 7]
    assert toys[0].mask.sum() == 40
    assert toys[2].mask is None
    assert data.notes[0] == "1 toy cases have no label and are left out."


def test_mood_abdomen_goes_by_either_name_and_root(mood_root):
    data = mood(mood_root, region="abdomen")
    case = data.train[0].load()
    assert case.image.shape == (22, 20, 24, 1)
    assert case.geometry.spacing_mm == (2, 1, 3)
    again = mood(mood_root / "colon", region="abdomen")
    assert ids(again.train) == ids(data.train)
    (mood_root / "colon" / "colon_train").rename(mood_root / "colon" / "abdom_train")
    (mood_root / "colon").rename(mood_root / "abdom")
    assert ids(mood(mood_root, region="abdomen").train) == ids(data.train)


def test_mood_that_cannot_be_used(mood_root):
    with pytest.raises(InputError, match="region: found 'head'"):
        mood(mood_root, region="head")
    with pytest.raises(InputError, match=r"found none of abdom/abdom_train.*colon_train"):
        mood(mood_root / "brain", region="abdomen")
    sample = mood_root / "brain" / "toy_label" / "sample" / "00000.nii.gz.txt"
    sample.write_text("yes")
    with pytest.raises(InputError, match=r"00000\.nii\.gz\.txt: found 'yes'; expected 0 or 1"):
        mood(mood_root, region="brain").test[0].load()
    for path in sorted((mood_root / "brain" / "brain_train").iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match="brain_train: found 1 volume; expected at least 2"):
        mood(mood_root, region="brain")


@pytest.mark.parametrize("place", ["brain_train", "toy"])
def test_mood_volumes_of_one_name(mood_root, place):
    put(mood_root / "brain" / place / "x" / "00001.nii.gz", shape=(9, 8, 7))
    with pytest.raises(InputError, match=r"00001\.nii\.gz: found a second file of that name"):
        mood(mood_root, region="brain")


# BUSI


@pytest.fixture
def busi_root(tmp_path):
    home = tmp_path / "Dataset_BUSI_with_GT"
    for index in range(1, 11):
        put(home / "normal" / f"normal ({index}).png")
        put(home / "normal" / f"normal ({index})_mask.png", np.zeros((24, 30), np.uint8))
    for kind in ("benign", "malignant"):
        put(home / kind / f"{kind} (1).png")
        put(home / kind / f"{kind} (1)_mask.png", square())
    second = np.zeros((24, 30), bool)
    second[20:] = True
    put(home / "benign" / "benign (1)_mask_1.png", second)
    return tmp_path


def test_busi_random_split_and_joined_masks(busi_root):
    data = busi(busi_root)
    test = {entry.case_id: entry.load() for entry in data.test}
    assert sum(case.label == 0 for case in test.values()) == 3
    assert len(data.train) + len(data.validation) == 7
    assert len(set(ids(data.train + data.validation + data.test))) == 12
    assert test["benign (1)"].mask.sum() == 35 + 4 * 30
    assert test["benign (1)"].kind == "benign"
    assert test["malignant (1)"].mask.sum() == 35
    inner = busi(busi_root / "Dataset_BUSI_with_GT")
    assert ids(inner.train) == ids(data.train)


def test_busi_follows_its_split_file_and_keeps_groups_whole(busi_root):
    rows = ["file,label,duplicate_group,use"]
    for index in range(1, 11):
        use = "test" if index in (2, 3) else "train"
        rows.append(f"normal/normal ({index}).png,normal,{7 if index > 8 else index},{use}")
    # The second breast with a lesion is shown in a normal image too.
    rows[5] = rows[5].replace(",5,", ",98,")
    rows += [
        "benign/benign (1).png,benign,98,test",
        "malignant/malignant (1).png,malignant,99,test",
    ]
    (busi_root / "split.csv").write_text("\n".join(rows))
    data = busi(busi_root)
    assert {"normal (2)", "normal (3)", "normal (5)"} < set(ids(data.test))
    assert len(data.train) + len(data.validation) == 7
    assert not patients(data.train) & patients(data.validation)
    (busi_root / "split.csv").write_text("\n".join(rows[:-1]))
    with pytest.raises(InputError, match=r"found no line for malignant/malignant \(1\)\.png"):
        busi(busi_root)
    (busi_root / "split.csv").write_text("\n".join([*rows, "normal/gone.png,normal,3,train"]))
    with pytest.raises(InputError, match=r"gone\.png: found no such file"):
        busi(busi_root)


def test_busi_near_duplicates_share_a_group(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    images = [np.kron(RNG.integers(0, 200, (6, 6)), np.ones((9, 9))) for _ in range(3)]
    images += [images[0][:, ::-1] + 5, images[1] + RNG.integers(0, 9, (54, 54))]
    for path, image in zip(paths, images, strict=True):
        put(path, image.astype(np.uint8))
    assert list(near_duplicate_groups(paths).values()) == ["0", "1", "2", "0", "1"]
    paths[2].write_bytes(b"broken")
    assert list(near_duplicate_groups(paths).values()) == ["0", "1", "2", "0", "1"]


def test_busi_near_duplicates_stay_on_one_side(busi_root):
    home = busi_root / "Dataset_BUSI_with_GT" / "normal"
    for index in range(4, 11):
        (home / f"normal ({index}).png").write_bytes((home / "normal (1).png").read_bytes())
    same = {"normal (1)", *(f"normal ({index})" for index in range(4, 11))}
    for seed in range(4):
        data = busi(busi_root, seed=seed, validation_fraction=0.5)
        sides = [set(ids(part)) & same for part in (data.train, data.validation, data.test)]
        assert sorted(map(len, sides)) == [0, 0, 8]


def test_busi_that_cannot_be_used(busi_root, tmp_path):
    with pytest.raises(InputError, match="nowhere: found nothing"):
        busi(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"extra_normals .*nowhere: found nothing"):
        busi(busi_root, extra_normals=tmp_path / "nowhere")
    (tmp_path / "empty" / "normal").mkdir(parents=True)
    with pytest.raises(InputError, match="found 0 normal training images"):
        busi(tmp_path / "empty")


@needs_shared
def test_busi_real_counts():
    data = busi(SHARED / "BUSI", extra_normals=SHARED / "BUSI_256_normals")
    assert len(data.train) + len(data.validation) == 23 + 53
    cases = [entry.load() for entry in data.test]
    assert [sum(c.kind == kind for c in cases) for kind in ("normal", "benign", "malignant")] == [
        12,
        11,
        12,
    ]
    assert all(case.mask.any() == case.label for case in cases)


# LGG


@pytest.fixture
def lgg_root(tmp_path):
    for patient in range(10):
        for number in range(1, 8):
            stem = tmp_path / "kaggle_3m" / f"P{patient}" / f"P{patient}_{number}"
            put(stem.with_name(f"{stem.name}.tif"), shape=(24, 24, 3))
            lesion = square((24, 24)) * (number == 4)
            put(stem.with_name(f"{stem.name}_mask.tif"), lesion)
    return tmp_path


def test_lgg_random_split_is_by_patient_and_clear_of_lesions(lgg_root):
    data = lgg(lgg_root)
    assert len(patients(data.test)) == 2
    assert not patients(data.test) & patients(data.train + data.validation)
    assert not patients(data.train) & patients(data.validation)
    assert {name.split("_")[1] for name in ids(data.train)} == {"1", "2", "6", "7"}
    cases = [entry.load() for entry in data.test]
    assert len(cases) == 14
    assert sum(case.kind == "glioma" for case in cases) == 2
    assert all(case.mask.any() == case.label for case in cases)


def test_lgg_channels(lgg_root):
    path = lgg_root / "kaggle_3m" / "P0" / "P0_1.tif"
    colour = np.asarray(Image.open(path))

    def load(channel):
        data = lgg(lgg_root, channel=channel)
        entries = data.train + data.validation + data.test
        return next(entry for entry in entries if entry.case_id == "P0_1").load().image

    assert_array_equal(load("flair"), colour[..., 1:2])
    assert_array_equal(load("all"), colour)
    # A patient without the contrast series has three copies of FLAIR, which read as grey.
    put(path, np.dstack([colour[..., 1]] * 3))
    assert_array_equal(load("flair"), colour[..., 1:2])
    assert_array_equal(load("all"), np.dstack([colour[..., 1]] * 3))
    with pytest.raises(InputError, match="channel: found 't1'"):
        lgg(lgg_root, channel="t1")


def test_lgg_follows_its_split_file(lgg_root):
    def line(patient, number, use):
        label = "abnormal" if number == 4 else "normal"
        return f"kaggle_3m/P{patient}/P{patient}_{number}.tif,P{patient},{label},{use}"

    rows = ["file,patient,label,use"]
    rows += [line(patient, number, "train") for patient in (0, 1, 2) for number in (1, 4)]
    rows += [line(3, number, "test") for number in range(1, 8)]
    (lgg_root / "split.csv").write_text("\n".join(rows))
    data = lgg(lgg_root)
    assert sorted(ids(data.train + data.validation)) == ["P0_1", "P1_1", "P2_1"]
    assert len(data.test) == 7
    (lgg_root / "split.csv").write_text("\n".join([*rows, line(3, 1, "train")]))
    with pytest.raises(InputError, match="patient P3 in train and in test"):
        lgg(lgg_root)
    (lgg_root / "split.csv").write_text("\n".join([*rows, line(11, 1, "train")]))
    with pytest.raises(InputError, match=r"P11_1\.tif: found no such file"):
        lgg(lgg_root)


def test_lgg_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="nowhere: found nothing"):
        lgg(tmp_path / "nowhere")
    with pytest.raises(InputError, match="found no slice with its mask"):
        lgg(tmp_path)


@needs_shared
def test_lgg_real_counts():
    data = lgg(SHARED / "LGG")
    assert len(data.train) + len(data.validation) == 75
    assert len(patients(data.train + data.validation)) == 25
    cases = [entry.load() for entry in data.test]
    assert sum(case.label for case in cases) == 37
    assert all(case.mask.any() == case.label for case in cases)
    assert len({case.patient for case in cases}) == 4


# the config


def config(**fields):
    base = {"dataset": "folder", "data_dir": "", "validation_fraction": 0.2, "seed": 0}
    return ml_collections.ConfigDict({**base, **fields})


def test_load_dataset_dispatches(tmp_path, mood_root, busi_root, lgg_root):
    for index in range(4):
        put(tmp_path / "own" / "normal" / f"{index}.png")
    for name, root, fields in [
        ("own", tmp_path / "own", {"dataset": "folder"}),
        ("MOOD abdomen", mood_root, {"dataset": "mood", "region": "abdomen"}),
        ("BUSI", busi_root, {"dataset": "busi"}),
        ("LGG", lgg_root, {"dataset": "lgg"}),
    ]:
        data = load_dataset(config(data_dir=str(root), validation_fraction=0.0, **fields))
        assert data.name == name
        assert data.train
        assert not data.validation
    three = load_dataset(config(dataset="lgg", data_dir=str(lgg_root), channel="all"))
    assert three.train[0].load().image.shape[-1] == 3


def test_load_dataset_without_a_folder_means_phantom_for_mood_only(tmp_path):
    phantom = config(
        dataset="mood",
        region="brain",
        phantom_size=32,
        phantom_train=3,
        phantom_validation=1,
        phantom_test=2,
    )
    data = load_dataset(phantom)
    assert data.stamp == "phantom"
    assert [len(part) for part in (data.train, data.validation, data.test)] == [3, 1, 2]
    phantom.data_dir = str(tmp_path / "gone")
    with pytest.raises(InputError, match="gone: found nothing"):
        load_dataset(phantom)
    with pytest.raises(InputError, match=r"data_dir: found an empty string.*--config\.data_dir="):
        load_dataset(config(dataset="busi"))
    with pytest.raises(InputError, match="dataset: found 'mvtecc'"):
        load_dataset(config(dataset="mvtecc"))


@pytest.mark.parametrize(
    ("fields", "axis"),
    [
        ({"dataset": "mood", "region": "brain"}, 2),
        ({"dataset": "mood", "region": "abdomen"}, 1),
        ({"dataset": "folder"}, 2),
        ({"dataset": "folder", "slice_axis": 0}, 0),
    ],
)
def test_new_volumes_are_read_as_those_of_training(tmp_path, mood_root, fields, axis):
    root = mood_root
    if fields["dataset"] == "folder":
        root = tmp_path / "own"
        for index in range(2):
            put(root / "normal" / f"{index}.nii.gz", shape=(9, 8, 7))
    settings = config(data_dir=str(root), **fields)
    known = load_dataset(settings).train[0]
    new = read_scan(known.paths[0], settings)
    assert known.load().geometry.slice_axis == new.geometry.slice_axis == axis
    assert_array_equal(new.image, known.load().image)


@pytest.mark.parametrize("fields", [{}, {"channel": "flair"}, {"channel": "all"}])
def test_new_images_have_the_channels_of_training(lgg_root, fields):
    settings = config(dataset="lgg", data_dir=str(lgg_root), **fields)
    known = load_dataset(settings).train[0]
    assert_array_equal(read_scan(known.paths[0], settings).image, known.load().image)


@needs_shared
def test_hazelnut_real_counts():
    data = folder(SHARED / "hazelnut_toy")
    assert len(data.train) + len(data.validation) == 28
    cases = [entry.load() for entry in data.test]
    assert [case.kind for case in cases].count("colour") == 12
    assert all(case.mask.any() == case.label for case in cases)
