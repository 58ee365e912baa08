"""Planted anomalies: exact masks, untouched surroundings, any data type, every kind."""

import numpy as np
import pytest
from scipy import ndimage

from caal_jax.data import planted
from caal_jax.data.case import Case, Entry, Geometry
from caal_jax.data.phantom import make_volume
from caal_jax.data.planted import KINDS, plant, planted_entries
from caal_jax.errors import InputError


@pytest.fixture(scope="module")
def brain():
    return np.moveaxis(make_volume(0, region="brain", size=48), 2, 0)[..., np.newaxis]


def variants(brain):
    """Healthy images of many makes; all show the same head."""
    scan = brain[24]
    return {
        "volume float32": brain,
        "volume uint16": np.rint(brain * 4095).astype(np.uint16),
        "volume int16 HU": np.rint(brain * 2000 - 1000).astype(np.int16),
        "thin volume": brain[20:26],
        "slice float64 far off zero": scan.astype(np.float64) * 1e-3 + 5,
        "slice float16": scan.astype(np.float16),
        "slice uint8 rgb": np.repeat(np.rint(scan * 255).astype(np.uint8), 3, axis=-1),
        "small slice": np.ascontiguousarray(scan[8:40, 8:40]),
        "six levels": np.rint(scan * 6).astype(np.uint8),
        "negative polarity": 1 - scan,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_image_differs_exactly_where_the_mask_says(kind, brain):
    for name, image in variants(brain).items():
        before = image.copy()
        result = plant(image, kind=kind, seed=1)
        np.testing.assert_array_equal(image, before, err_msg=f"{name}: input written to")
        assert result.image.dtype == image.dtype, name
        assert result.image.shape == image.shape, name
        assert result.mask.dtype == bool
        assert result.mask.any(), name
        differs = (result.image != image).any(axis=-1)
        np.testing.assert_array_equal(differs, result.mask, err_msg=name)
        assert result.image.min() >= image.min(), name
        assert result.image.max() <= image.max(), name
        assert result.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_anomaly_is_meaningful_compact_and_in_the_head(kind, brain):
    low, high = np.percentile(brain[brain > 0], (1, 99))
    for seed in range(4):
        result = plant(brain, kind=kind, seed=seed, size=0.12, contrast=0.1)
        change = np.abs(result.image - brain)[result.mask].mean() / (high - low)
        assert change > 0.03
        head = ndimage.binary_fill_holes(brain[..., 0] > 0)
        assert head[result.mask].all()
        where = np.argwhere(result.mask)
        assert np.ptp(where, axis=0).max() + 1 <= 2 * 2.1 * 0.12 * 48
        assert np.ptp(where, axis=0).min() >= 2  # a volume gets a 3-D blob


@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides(kind, brain):
    scan = brain[24]
    once, again, other = (plant(scan, kind=kind, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(once.image, again.image)
    np.testing.assert_array_equal(once.mask, again.mask)
    assert once[3:] == again[3:]
    assert (once.mask != other.mask).any()


def test_size_sets_the_volume_of_the_mask(brain):
    voxels = [
        plant(brain, kind="uniform_blob", seed=0, size=s, contrast=0.8).mask.sum()
        for s in (0.05, 0.1, 0.2)
    ]
    assert 5 < voxels[1] / voxels[0] < 12  # 8 but for the outline on the grid
    assert 3 < voxels[2] / voxels[1] < 12  # the largest meets the rim of the head


@pytest.mark.parametrize("kind", ["uniform_blob", "noise_blob", "intensity_shift"])
def test_contrast_sets_the_change(kind, brain):
    weak, strong = (
        np.abs(p.image - brain)[p.mask].mean()
        for p in (plant(brain, kind=kind, seed=2, size=0.1, contrast=c) for c in (0.2, 0.8))
    )
    assert strong > 1.3 * weak


def test_a_change_below_three_percent_is_strengthened():
    rows, columns = np.indices((64, 64)) / 63
    image = (0.5 + 0.5 * rows * columns)[..., np.newaxis]  # without noise: 2.5 % would show
    for seed in range(4):
        result = plant(image, kind="intensity_shift", seed=seed, size=0.15, contrast=0.025)
        assert 0.03 < result.contrast < 0.1
        change = np.abs(result.image - image)[result.mask].mean()
        assert change >= 0.03 * planted._scene(image).scale


def test_uniform_blob_is_uniform_at_its_core_and_as_far_as_asked(brain):
    result = plant(brain, kind="uniform_blob", seed=5, size=0.15, contrast=0.4)
    core = ndimage.binary_erosion(result.mask, iterations=4)
    assert core.sum() > 10
    values = result.image[core]
    assert np.ptp(values) == 0
    low, high = np.percentile(brain[brain > 0], (1, 99))
    step = abs(values[0] - np.median(brain[result.mask]))
    assert step == pytest.approx(0.4 * (high - low), rel=0.15)


def spot_on(image, centre, radius):
    """A hand-made round blob, its outline known exactly."""
    offset = np.stack(np.indices(image.shape[:-1]) - np.reshape(centre, (-1, 1, 1))).astype(float)
    scene = planted._scene(image)
    return scene, planted._Spot(
        box=tuple(slice(0, n) for n in image.shape[:-1]),
        centre=np.array(centre),
        values=image.astype(float),
        foreground=scene.foreground,
        offset=offset,
        radial=np.linalg.norm(offset, axis=0) / radius,
        radius_px=radius,
    )


def test_source_pushes_away_from_the_centre_and_sink_draws_in():
    rows, columns = np.indices((41, 41)) - 20
    ring = np.hypot(rows, columns)
    image = np.exp(-(((ring - 6) / 2) ** 2))[..., np.newaxis]  # a ring of radius 6
    scene, spot = spot_on(image, (20, 20), 12.0)

    def ring_radius(changed):
        return np.argmax(changed[20, 20:33, 0])

    # Content at radial t comes from t ** power: the ring at 1/2 goes to (1/2) ** (1 / power).
    source = planted._source(None, scene, spot, 0.5)  # power 2
    assert ring_radius(source) == round(12 * 0.5**0.5)
    sink = planted._sink(None, scene, spot, 0.5)  # power 0.6
    assert ring_radius(sink) == round(12 * 0.5 ** (1 / 0.6))
    outside = spot.radial >= 1
    for changed in (source, sink):
        np.testing.assert_allclose(changed[outside], image[outside], atol=1e-6)


def test_mirrored_part_is_the_flip_about_its_own_centre():
    image = np.random.default_rng(0).random((31, 33, 2))
    scene, spot = spot_on(image, (14, 15), 6.0)
    flips = [planted._mirrored_part(np.random.default_rng(s), scene, spot, 1.0) for s in range(8)]
    window = (slice(8, 21), slice(9, 22))
    rows, columns = image[window][::-1], image[window][:, ::-1]
    matches = [(np.array_equal(f[window], rows), np.array_equal(f[window], columns)) for f in flips]
    assert set(matches) == {(True, False), (False, True)}


def test_missing_part_takes_the_value_of_background_or_surroundings():
    rng = np.random.default_rng(0)
    image = np.zeros((48, 48, 1))
    image[4:44, 4:44] = 0.5 + 1e-4 * rng.standard_normal((40, 40, 1))
    image[20:28, 20:28] = 0.9  # the organ
    scene, spot = spot_on(image, (24, 24), 8.0)
    fills = {
        round(
            float(planted._missing_part(np.random.default_rng(s), scene, spot, 1.0)[24, 24, 0]), 2
        )
        for s in range(8)
    }
    assert fills == {0.0, 0.5}


def test_foreign_texture_keeps_the_mean_of_the_tissue():
    image = np.random.default_rng(1).normal(0.5, 0.01, (64, 64, 1))
    image[:5] = 1
    scene, spot = spot_on(image, (34, 32), 16.0)
    assert scene.scale == pytest.approx(0.5, abs=0.03)
    inside = spot.radial < 1
    for seed in range(9):
        changed = planted._foreign_texture(np.random.default_rng(seed), scene, spot, 0.5)
        assert changed[inside].mean() == pytest.approx(0.5, abs=0.06)
        assert changed[inside].std() > 5 * image[inside].std()


def test_gas_inside_the_body_counts_as_foreground():
    image = np.zeros((40, 40, 1))
    image[8:32, 8:32] = 1
    image[16:20, 16:20] = 0
    expected = np.zeros((40, 40), bool)
    expected[8:32, 8:32] = True
    np.testing.assert_array_equal(planted._scene(image).foreground, expected)


def test_equal_values_move_by_the_smallest_step():
    np.testing.assert_array_equal(
        planted._smallest_step(np.array([[0], [100], [255]], np.uint8), (0, 255)),
        np.array([[1], [101], [254]], np.uint8),
    )
    values = np.array([[0.0], [0.25], [1.0]], np.float32)
    moved = planted._smallest_step(values, (0, 1))
    assert moved.dtype == np.float32
    np.testing.assert_array_equal(np.sign(moved - values), [[1], [1], [-1]])
    np.testing.assert_array_almost_equal_nulp(moved, values)


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.full((32, 32, 1), 3.0), "3.0 everywhere"),
        (np.full((8, 32, 32, 1), 7, np.uint16), "7.0 everywhere"),
        (np.eye(32), "H, W, C"),
        (np.eye(32, dtype=bool)[..., np.newaxis], "bool values"),
        (np.where(np.eye(32) > 0, np.nan, 1.0)[..., np.newaxis], "not finite"),
    ],
)
def test_unusable_images_are_refused(image, match):
    with pytest.raises(InputError, match=match):
        plant(image, kind="sink", seed=0)


@pytest.mark.parametrize(
    "wrong", [{"kind": "cutpaste"}, {"size": 0.0}, {"size": 0.6}, {"contrast": 1.2}]
)
def test_unusable_options_are_refused(wrong, brain):
    with pytest.raises(InputError, match="anomaly"):
        plant(brain[24], **{"kind": "sink", "seed": 0, **wrong})


def test_a_change_that_cannot_show_is_refused():
    rows = np.broadcast_to(np.linspace(0, 1, 40)[:, np.newaxis, np.newaxis], (40, 40, 1)).copy()
    rows[1:] = 0.5  # flat but for its first row: a deformation has nothing to move
    with pytest.raises(InputError, match="no place where sink would show"):
        plant(rows, kind="sink", seed=0, size=0.05)


def entries_of(scan, count):
    def case(i):
        return Case(f"{i:05d}", scan + np.float32(i), Geometry((1.0, 1.0)), patient=f"p{i}")

    return [Entry(f"{i:05d}", lambda i=i: case(i)) for i in range(count)]


def test_planted_entries_make_a_balanced_test_split(brain):
    entries = planted_entries(entries_of(brain[24], 48), seed=3)
    assert [entry.case_id for entry in entries] == [f"{i:05d}" for i in range(48)]
    cases = [entry.load() for entry in entries]
    assert [case.patient for case in cases] == [f"p{i}" for i in range(48)]
    abnormal = [case for case in cases if case.label == 1]
    assert sorted(case.kind for case in abnormal) == sorted(3 * KINDS)
    for i, case in enumerate(cases):
        differs = (case.image != brain[24] + np.float32(i)).any(axis=-1)
        np.testing.assert_array_equal(differs, case.mask)
        assert case.label == int(case.mask.any())
    areas = [case.mask.mean() for case in abnormal]
    assert max(areas) > 6 * min(areas)


@pytest.mark.parametrize(
    ("count", "fraction", "abnormal"),
    [(0, 0.5, 0), (1, 0.5, 1), (9, 0.5, 5), (4, 0.0, 0), (4, 1, 4)],
)
def test_planted_entries_honour_the_fraction(count, fraction, abnormal, brain):
    entries = planted_entries(entries_of(brain[24], count), seed=0, abnormal_fraction=fraction)
    cases = [entry.load() for entry in entries]
    assert len(cases) == count
    assert sum(case.label for case in cases) == abnormal


def test_planted_entries_spread_size_and_contrast(brain, monkeypatch):
    plans = []
    real = planted.plant
    monkeypatch.setattr(planted, "plant", lambda image, **p: plans.append(p) or real(image, **p))
    for entry in planted_entries(entries_of(brain[24], 64), seed=1, abnormal_fraction=1.0):
        entry.load()
    for name, (low, high) in (("size", (0.04, 0.2)), ("contrast", (0.1, 1.0))):
        for kind in KINDS:
            shares = sorted((p[name] - low) / (high - low) for p in plans if p["kind"] == kind)
            assert len(shares) == 8
            assert np.max(np.diff([0, *shares, 1])) < 0.35  # no gap: small to large, low to high
    assert len({p["seed"] for p in plans}) == 64


def test_planted_entries_follow_their_seed(brain):
    def masks(seed):
        return np.stack(
            [e.load().mask for e in planted_entries(entries_of(brain[24], 6), seed=seed)]
        )

    np.testing.assert_array_equal(masks(0), masks(0))
    assert (masks(0) != masks(1)).any()


def test_planted_entries_refuse_abnormal_cases(brain):
    sick = Case("00001", brain[24], Geometry((1.0, 1.0)), label=1, kind="malignant")
    (entry,) = planted_entries([Entry("00001", lambda: sick)], seed=0)
    with pytest.raises(InputError, match=r"00001.*malignant"):
        entry.load()
