"""The bank of volumes: patches around the foreground, at the same place of another patient."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax.data.case import Case, Entry, Geometry
from caal_jax.data.facts import intensity_range
from caal_jax.data.volumes import VolumeBank, padded
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)
PATCH = (8, 10, 12)
SHAPES = {"a": (20, 24, 18), "b": (9, 30, 16), "c": (16, 10, 25), "d": (13, 17, 12)}


def case_of(name, image, **facts):
    return Case(name, image, Geometry((1.0, 1.0, 1.0)), **facts)


def entry(name, image, **facts):
    return Entry(name, lambda: case_of(name, image, **facts))


STEP = 9000  # of codes between volumes


def coded(number, shape):
    """Voxels that tell their volume and their index in it."""
    return (STEP * number + np.arange(np.prod(shape))).astype(np.uint16).reshape(*shape, 1)


@pytest.fixture
def volumes():
    return {name: coded(k, shape) for k, (name, shape) in enumerate(SHAPES.items())}


def bank_of(volumes, tmp_path, **options):
    entries = [entry(name, image) for name, image in volumes.items()]
    return VolumeBank.build(entries, patch=PATCH, cache_dir=tmp_path, **options)


def origin(patch, volumes):
    """The number of the volume that a patch was cut from, and its corner there."""
    number, index = divmod(int(patch.flat[0]), STEP)
    image = list(volumes.values())[number]
    corner = np.array(np.unravel_index(index, image.shape[:3]))
    here = tuple(slice(a, a + n) for a, n in zip(corner, PATCH, strict=True))
    assert_array_equal(image[here], patch)
    return number, corner, np.array(image.shape[:3])


def test_pairs_lie_at_one_relative_place_of_two_patients(volumes, tmp_path):
    calls = []
    bank = bank_of(volumes, tmp_path, progress=lambda *counts: calls.append(counts))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (bank.shape, bank.notes) == ((*PATCH, 1), ())
    ranges = np.array([intensity_range(image) for image in volumes.values()])
    pairs, num_exact = set(), 0
    for step in range(40):
        batch = bank.batch(5, step, 8)
        assert batch.target.dtype == np.uint16
        for k in range(8):
            own, corner, sides = origin(batch.target[k], volumes)
            other, found, other_sides = origin(batch.source[k], volumes)
            assert own == batch.indices[k] != other
            pairs.add((own, other))
            assert_allclose((batch.low[k], batch.high[k]), ranges[own])
            assert_allclose((batch.source_low[k], batch.source_high[k]), ranges[other])
            centre = corner + np.array(PATCH) // 2
            mirrored = np.int64((centre + 0.5) / sides * other_sides) - np.array(PATCH) // 2
            wanted = np.clip(mirrored, 0, other_sides - PATCH)
            # A target's patch at the border may have been moved there.
            free = (corner > 0) & (corner < sides - PATCH)
            assert_array_equal(found[free], wanted[free])
            num_exact += free.sum()
    assert len(pairs) == 12
    assert num_exact > 100


def test_order_is_a_function_of_seed_and_step(volumes, tmp_path):
    bank, again = bank_of(volumes, tmp_path), bank_of(volumes, tmp_path)
    bank.batch(3, 5, 8)
    for one, other in zip(bank.batch(3, 2, 8), again.batch(3, 2, 8), strict=True):
        assert_array_equal(one, other)
    assert not np.array_equal(bank.batch(3, 2, 8).indices, bank.batch(4, 2, 8).indices)
    pairs = [(bank.batch(3, step, 1), bank.batch(4, step, 1)) for step in range(40)]
    alike = [np.array_equal(a.target, b.target) for a, b in pairs if a.indices == b.indices]
    assert len(alike) > 3
    assert not all(alike)  # another place of the same volume
    epoch = np.concatenate([bank.batch(1, step, 2).indices for step in range(2)])
    assert_array_equal(np.sort(epoch), np.arange(4))


def test_rows_that_nobody_asks_for_are_not_read(volumes, tmp_path):
    bank, rows = bank_of(volumes, tmp_path), np.array([True, False, True])
    whole, found = bank.batch(3, 2, 3), bank.batch(3, 2, 3, rows=rows)
    for name, one, other in zip(whole._fields, whole, found, strict=True):
        assert_array_equal(one[rows], other[rows])
        assert_array_equal(other[1], 0 if name in ("target", "source") else one[1])


def test_patches_lie_around_foreground(tmp_path):
    image = np.zeros((60, 40, 40, 1), np.float32)
    image[50:, 30:, 5:15] = RNG.uniform(0.5, 1, (10, 10, 10, 1))
    entries = [entry("a", image), entry("b", RNG.random((60, 40, 40, 1)).astype(np.float32))]
    bank = VolumeBank.build(entries, patch=(8, 8, 8), cache_dir=tmp_path)
    for step in range(20):
        batch = bank.batch(0, step, 2)
        for k, case in enumerate(batch.indices):
            # Around a voxel of it: at the volume's end too, half of a side or more.
            assert case or (batch.target[k] > 0).mean() > 0.12


def test_volumes_beyond_memory_lie_in_a_file(volumes, tmp_path):
    memory, disk = bank_of(volumes, tmp_path / "x"), bank_of(volumes, tmp_path, max_bytes=20000)
    assert not memory.on_disk
    assert disk.on_disk
    on_disk = [isinstance(volume, np.memmap) for volume in disk.volumes]
    assert on_disk == [False, True, True, True]
    for one, other in zip(memory.batch(0, 3, 8), disk.batch(0, 3, 8), strict=True):
        assert_array_equal(one, other)


def test_equalised_volumes_need_no_range(volumes, tmp_path):
    bank = bank_of(
        volumes, tmp_path, equalise=lambda volume, low, high: np.float16((volume - low) / 32000)
    )
    assert bank.dtype == np.float16
    assert_array_equal(bank.low, np.zeros(4))
    assert_array_equal(bank.high, np.ones(4))
    want = (volumes["b"] - intensity_range(volumes["b"])[0]) / 32000
    assert_allclose(bank.volumes[1], want, atol=1e-3)


def test_small_volumes_are_padded_in_the_middle():
    image = RNG.integers(5, 200, (5, 30, 11, 1)).astype(np.int16)
    found, place = padded(case_of("a", image), PATCH)
    assert found.shape == (8, 30, 12, 1)
    assert place == (slice(1, 6), slice(0, 30), slice(0, 11))
    assert_array_equal(found[place], image)
    rest = found.copy()
    rest[place] = image.min()
    assert (rest == image.min()).all()
    assert found.dtype == np.int16


def test_what_is_no_volume_is_skipped_with_a_note(tmp_path):
    ramp = RNG.random((12, 12, 12, 1)).astype(np.float32)
    good = [entry(name, ramp) for name in "ab"]
    bad = [
        entry("flat", np.full((12, 12, 12, 1), 7, np.uint8)),
        entry("picture", ramp[0]),
        entry("gaps", ramp, positions=tuple(np.linspace(0, 0.9, 12))),
        entry("colour", np.repeat(ramp, 3, axis=-1)),
    ]
    bank = VolumeBank.build([good[0], *bad, good[1]], patch=(8, 8, 8), cache_dir=tmp_path)
    assert bank.case_ids == ("a", "b")
    assert bank.notes[0].startswith("4 of 6 training cases were skipped, the first being flat (")
    for one, message in zip(
        bad[1:], ("a 2-D image", "slices were left out", "1 usable patient"), strict=True
    ):
        with pytest.raises(InputError, match=message):
            VolumeBank.build([good[0], one], patch=(8, 8, 8), cache_dir=tmp_path)
