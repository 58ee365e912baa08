"""Near-duplicates are found, different pictures are not."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from caal_jax.case_statistics import CaseStatistics
from caal_jax.data.case import Case, Entry, Geometry
from caal_jax.data.fingerprint import ALIKE, Seen, fingerprint, most_alike
from caal_jax.data.phantom import make_volume
from caal_jax.data.readers import image_files, read_image, stem_of
from caal_jax.evaluate import leaks

RNG = np.random.default_rng(0)
SHARED = Path(__file__).parents[3] / "shared" / "data"


def picture(seed, shape=(90, 120)):
    """Smooth structure of many sizes, uint8."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.standard_normal(shape), (0, 0), s) * s for s in (3, 6, 12)]
    values = sum(layers)
    return np.uint8(255 * (values - values.min()) / np.ptp(values))[..., None]


def copies(image):
    """The same picture, as archives change it."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])
    noisy = image + RNG.normal(0, 8, image.shape)
    return {
        "same": image,
        "jpeg": cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)[..., None],
        "smaller": cv2.resize(image, (70, 50), interpolation=cv2.INTER_AREA)[..., None],
        "brighter": np.uint16(40 * image.astype(np.uint16) + 900),
        "gamma": (image / 255.0).astype(np.float32) ** 1.4,
        "noisy": np.clip(noisy, 0, 255).astype(np.uint8),
        "mirrored": image[:, ::-1],
        "cropped": image[2:-2, 3:-3],
        "coloured": np.repeat(image, 3, axis=-1),
    }


@pytest.mark.parametrize("kind", copies(picture(0)))
def test_copies_are_found_among_others(kind):
    prints = np.stack([fingerprint(picture(seed)) for seed in range(40)])
    other = np.stack([fingerprint(copies(picture(seed))[kind]) for seed in (7, 21, 50)])
    index, correlation = most_alike(prints, other)
    assert_array_equal(index[:2], [7, 21])
    assert (correlation[:2] > ALIKE).all()
    assert correlation[2] < 0.8


def test_correlation_is_numpys():
    prints = np.stack([fingerprint(picture(seed)) for seed in range(5)])
    other = np.stack([fingerprint(picture(seed)) for seed in range(9, 12)])
    turned = np.concatenate([prints, prints[..., ::-1]]).reshape(10, -1)
    want = np.corrcoef(turned, other.reshape(3, -1))[:10, 10:]
    index, correlation = most_alike(prints, other)
    assert_array_equal(index, want.argmax(axis=0) % 5)
    # The mean of a fingerprint is zero up to rounding.
    np.testing.assert_allclose(correlation, want.max(axis=0), atol=1e-3)


def test_a_constant_image_is_like_nothing():
    flat = fingerprint(np.full((30, 30, 1), 7, np.uint8))
    assert not flat.any()
    _, correlation = most_alike(flat[None], fingerprint(picture(1))[None])
    assert correlation[0] == 0


def test_volumes_of_different_subjects_differ():
    volumes = [make_volume([3, k], region="brain", size=32)[..., None] for k in range(8)]
    prints = np.stack([fingerprint(volume) for volume in volumes])
    assert prints.shape == (8, 3, 24, 24)
    for k in range(8):
        _, correlation = most_alike(np.delete(prints, k, axis=0), prints[k : k + 1])
        assert correlation[0] < ALIKE
    noisy = volumes[2] + RNG.normal(0, 0.02, volumes[2].shape)
    index, correlation = most_alike(prints, fingerprint(noisy)[None])
    assert index[0] == 2
    assert correlation[0] > 0.95


def entry(name, image, patient):
    case = Case(name, image, Geometry((1.0, 1.0)), patient=patient)
    return Entry(name, lambda: case)


def record(cases):
    seen = Seen()
    for watched in seen.watch([entry(*case) for case in cases]):
        watched.load()
    return seen


def test_leaks_are_told_and_survive_a_file(tmp_path):
    volume = RNG.random((9, 20, 20, 1)).astype(np.float32)
    train = record([("a", picture(1), "p1"), ("b", picture(2), "p2"), ("v", volume, "p3")])
    copy = np.clip(picture(2)[:, ::-1] + RNG.normal(0, 4, picture(2).shape), 0, 255)
    test = record([("c", picture(3), "p4"), ("d", copy, "p5"), ("w", volume * 2, "p1")])
    train.save(tmp_path / "seen.npz")
    for seen in (train, Seen.read(tmp_path / "seen.npz")):
        assert seen.shared_patients(test) == ["p1"]
        pairs = seen.look_alikes(test)
        assert [pair[:2] for pair in pairs] == [("v", "w"), ("b", "d")]
        patients, images = seen.leaks(test)
        assert patients.startswith("LEAK: 1 patient(s) are in training and in test, such as p1")
        assert images.startswith("LEAK? 2 test image(s)")
        assert "w like v" in images
    assert Seen.read(tmp_path / "no.npz").leaks(test) == []
    assert train.leaks(record([("c", picture(3), "p4")])) == []


def test_an_evaluation_tells_what_training_had_seen(tmp_path):
    record([("a", picture(1), "p1"), ("b", picture(2), "p2")]).save(tmp_path / "fingerprints.npz")

    def tested(seed, patient):
        return CaseStatistics(
            case_id=f"t{seed}",
            patient=patient,
            kind="normal",
            label=0,
            score=0.5,
            has_mask=False,
            fingerprint=fingerprint(picture(seed)),
        )

    assert leaks(tmp_path, [tested(3, "p3"), tested(4, "p4")]) == []
    (note,) = leaks(tmp_path, [tested(3, "p3"), tested(2, "p4")])
    assert "t2 like b" in note
    (note,) = leaks(tmp_path, [tested(3, "p1")])
    assert "such as p1" in note


@pytest.mark.skipif(not SHARED.is_dir(), reason="real images are not here")
def test_real_near_duplicates():
    """The published set shows some breasts twice; other patients' images are no duplicates."""
    home = SHARED / "BUSI" / "Dataset_BUSI_with_GT" / "normal"
    paths = [path for path in image_files(home) if "_mask" not in path.name]
    prints = dict(
        zip(map(stem_of, paths), (fingerprint(read_image(p).image) for p in paths), strict=True)
    )
    rows = (SHARED / "BUSI" / "split.csv").read_text().splitlines()[1:]
    groups = {}
    for row in rows:
        if row.startswith("normal/"):
            name, group = row.split(",")[0], row.split(",")[3]
            groups[stem_of(name)] = group
    names = list(prints)
    for name in names:
        others = [other for other in names if other != name]
        index, correlation = most_alike(np.stack([prints[o] for o in others]), prints[name][None])
        same = [other for other in others if groups[other] == groups[name]]
        assert (correlation[0] >= ALIKE) == bool(same), name
        assert not same or others[index[0]] in same
