"""The training bank: contents, order, partners, and what it leaves out."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from caal_jax.data.case import Case, Entry, Geometry
from caal_jax.data.facts import intensity_range, match_channels
from caal_jax.data.letterbox import letterbox
from caal_jax.data.slices import SliceBank
from caal_jax.data.spool import Spool
from caal_jax.errors import InputError

RNG = np.random.default_rng(0)


def entry(image, case_id, *, patient="", spacing=(1.0, 1.0, 1.0)):
    geometry = Geometry(spacing[-(image.ndim - 1) :])
    return Entry(case_id, lambda: Case(case_id, image, geometry, patient=patient))


def volume(depth, *, dtype=np.uint8):
    return RNG.integers(1, 200, (depth, 12, 10, 1)).astype(dtype)


def picture(shape=(12, 10, 1), dtype=np.uint8):
    return RNG.integers(0, 200, shape).astype(dtype)


def broken_entry(case_id):
    def load():
        raise InputError(f"{case_id}.png", found="rubbish", expected="an image", remedy="Fix it.")

    return Entry(case_id, load)


@pytest.fixture
def volumes():
    return {name: volume(depth) for name, depth in [("a", 5), ("b", 9), ("c", 4), ("d", 7)]}


def bank_of(volumes, **options):
    entries = [entry(image, name) for name, image in volumes.items()]
    return SliceBank.build(entries, image_size=16, **options)


def test_contents(volumes):
    calls = []
    bank = bank_of(volumes, progress=lambda *counts: calls.append(counts))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert bank.images.shape == (25, 16, 16, 1)
    assert bank.images.dtype == np.uint8
    start = 0
    for index, (name, image) in enumerate(volumes.items()):
        for place, one in enumerate(image):
            want, _ = letterbox(one, size=16, spacing_mm=(1.0, 1.0))
            assert_array_equal(bank.images[start], want)
            assert bank.case_ids[bank.case_index[start]] == name
            assert bank.case_index[start] == index
            assert_allclose(bank.positions[start], place / (len(image) - 1), rtol=1e-6)
            assert_allclose((bank.low[start], bank.high[start]), intensity_range(image))
            start += 1
    assert bank.notes == ()


def test_every_epoch_is_a_permutation_across_batch_borders(volumes):
    bank = bank_of(volumes)
    stream = np.concatenate([bank.batch(7, step, 8).indices for step in range(25)])
    epochs = stream.reshape(8, 25)
    assert_array_equal(np.sort(epochs), np.tile(np.arange(25), (8, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 8
    # More than one epoch in one batch.
    assert_array_equal(np.bincount(bank.batch(7, 0, 50).indices), np.full(25, 2))


def test_batch_is_a_function_of_seed_and_step(volumes):
    bank, again = bank_of(volumes), bank_of(volumes)
    bank.batch(3, 5, 8)
    for one, other in zip(bank.batch(3, 2, 8), again.batch(3, 2, 8), strict=True):
        assert_array_equal(one, other)
    assert not np.array_equal(bank.batch(3, 2, 8).indices, bank.batch(4, 2, 8).indices)
    assert not np.array_equal(bank.batch(3, 2, 8).source, bank.batch(4, 2, 8).source)


def test_sources_are_other_patients_at_the_nearest_position(volumes):
    bank = bank_of(volumes)
    seen = set()
    for step in range(40):
        batch = bank.batch(0, step, 16)
        sources = bank._partners(batch.indices, np.random.default_rng((0, step)).random(16))
        assert_array_equal(batch.source, bank.images[sources])
        assert_array_equal(batch.target, bank.images[batch.indices])
        assert_array_equal(batch.low, bank.low[batch.indices])
        assert_array_equal(batch.high, bank.high[batch.indices])
        assert_array_equal(batch.source_low, bank.low[sources])
        assert_array_equal(batch.source_high, bank.high[sources])
        own, other = bank.case_index[batch.indices], bank.case_index[sources]
        assert (own != other).all()
        seen |= set(zip(own, other, strict=True))
        for target, source in zip(batch.indices, sources, strict=True):
            same = np.flatnonzero(bank.case_index == bank.case_index[source])
            distances = np.abs(bank.positions[same] - bank.positions[target])
            got = abs(bank.positions[source] - bank.positions[target])
            assert_allclose(got, distances.min(), atol=1e-6)
    assert len(seen) == 12  # every ordered pair of the four cases


def test_images_of_one_patient_are_no_partners():
    # Interleaved on purpose: the bank must sort them.
    entries = [entry(picture(), f"{index}", patient=f"p{index % 3}") for index in range(9)]
    bank = SliceBank.build(entries, image_size=8)
    names = np.array([f"p{int(case_id) % 3}" for case_id in bank.case_ids])
    counts = np.zeros((9, 9), int)
    for step in range(200):
        indices = bank.batch(1, step, 9).indices
        sources = bank._partners(indices, np.random.default_rng((1, step)).random(9))
        np.add.at(counts, (bank.case_index[indices], bank.case_index[sources]), 1)
    other = names[:, None] != names[None]
    assert (counts[~other] == 0).all()
    assert counts[other].min() > 10  # about 33 each


@pytest.mark.parametrize(
    ("dtypes", "want"),
    [
        ((np.uint8, np.uint8), np.uint8),
        ((np.uint16, np.uint16), np.uint16),
        ((np.uint8, np.uint16), np.float32),
        ((np.int16, np.int16), np.int16),
        ((np.float32, np.uint8), np.float32),
    ],
)
def test_type_is_raw_only_where_all_agree(dtypes, want):
    images = [picture(dtype=dtype) for dtype in dtypes]
    entries = [entry(image, str(index)) for index, image in enumerate(images)]
    bank = SliceBank.build(entries, image_size=12)
    assert bank.images.dtype == want
    assert_array_equal(bank.images[0, :, 1:11], images[0])
    assert bank.low.dtype == bank.high.dtype == np.float32


def test_nearly_empty_slices_are_left_out():
    image = volume(6)
    image[[0, 5]] = 0
    image[4, :, :] = 0
    image[4, 0, :2] = 150  # 1.7 % of the slice
    entries = [entry(image, "a"), entry(volume(3), "b")]
    bank = SliceBank.build(entries, image_size=16)
    assert_allclose(bank.positions[bank.case_index == 0], [0.2, 0.4, 0.6], rtol=1e-6)
    assert bank.notes == ("3 nearly empty training slices were left out.",)
    assert len(SliceBank.build(entries, image_size=16, min_foreground=0.0)) == 9


def test_mixed_sizes_and_spacings():
    entries = [
        entry(volume(3), "a", spacing=(5.0, 1.0, 1.0)),
        entry(RNG.integers(0, 9, (2, 30, 20, 1)).astype(np.uint8), "b", spacing=(1.0, 2.0, 0.5)),
        entry(picture((50, 9, 1)), "c"),
    ]
    bank = SliceBank.build(entries, image_size=16)
    assert bank.images.shape == (6, 16, 16, 1)
    # 60 mm x 10 mm: about three columns wide.
    assert (bank.images[3] != bank.images[3].min()).any(axis=(0, 2)).sum() <= 3


def test_mixed_channels_become_grey_with_a_note():
    colour, grey = picture((8, 8, 3)), picture((8, 8, 1))
    entries = [entry(colour, "colour"), entry(grey, "grey")]
    bank = SliceBank.build(entries, image_size=8)
    assert bank.images.shape == (2, 8, 8, 1)
    index = bank.case_ids.index("colour")
    want = match_channels(colour, 1)
    assert_array_equal(bank.images[index], want)
    assert_allclose((bank.low[index], bank.high[index]), intensity_range(want))
    assert bank.notes == (
        "1 colour training cases, the first being colour, became grey because others, such as "
        "grey, are grey.",
    )
    both = SliceBank.build([entry(colour, "a"), entry(picture((8, 8, 3)), "b")], image_size=8)
    assert both.images.shape == (2, 8, 8, 3)


def test_bad_cases_are_skipped_with_a_note():
    constant = np.full((9, 9, 1), 7, np.uint8)
    entries = [broken_entry("x"), entry(picture(), "a"), entry(constant, "flat")]
    entries += [entry(picture(), "b")]
    bank = SliceBank.build(entries, image_size=8)
    assert bank.case_ids == ("a", "b")
    assert len(bank.notes) == 1
    assert bank.notes[0].startswith(
        "2 of 4 training cases were skipped, the first being x (x.png: found rubbish"
    )


def test_too_few_cases():
    constant = np.full((9, 9, 1), 7, np.uint8)
    with pytest.raises(InputError, match="found 1 usable patient among 2 cases; skipped flat"):
        SliceBank.build([entry(picture(), "a"), entry(constant, "flat")], image_size=8)
    with pytest.raises(InputError, match="found 1 usable patient among 2 cases"):
        SliceBank.build([entry(picture(), n, patient="p") for n in "ab"], image_size=8)
    with pytest.raises(InputError, match="found 0 usable patients among 0 cases"):
        SliceBank.build([], image_size=8)
    two = entry(picture((9, 9, 2)), "two")
    with pytest.raises(InputError, match="found 2 channels; expected 1 or 3"):
        SliceBank.build([two, entry(picture(), "a")], image_size=8)


def test_large_bank_is_the_same_on_disk(volumes, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"more than 3000 bytes.*give a cache_dir"):
        bank_of(volumes, max_bytes=3000)
    cache, lengths, append = tmp_path / "cache", [], Spool.append
    monkeypatch.setattr(
        Spool, "append", lambda spool, array: append(spool, array) or lengths.append(len(array))
    )
    disk = bank_of(volumes, max_bytes=3000, cache_dir=cache)
    # 256 bytes a slice: the first two cases are 3584, so all but the first wait on disk.
    assert lengths == [9, 4, 7]
    memory = bank_of(volumes)
    assert [path.name for path in cache.iterdir()] == ["slices.npy"]
    assert_array_equal(disk.images, memory.images)
    for one, other in zip(disk.batch(0, 3, 8), memory.batch(0, 3, 8), strict=True):
        assert type(one) is np.ndarray
        assert_array_equal(one, other)


def test_bank_that_outgrows_memory_by_its_common_type(tmp_path):
    entries = [entry(picture(), "a"), entry(picture(dtype=np.uint16), "b")]
    size = 3 * 16 * 16
    with pytest.raises(InputError, match="give a cache_dir"):
        SliceBank.build(entries, image_size=16, max_bytes=size)
    bank = SliceBank.build(entries, image_size=16, max_bytes=size, cache_dir=tmp_path)
    assert bank.images.dtype == np.float32


def test_intensity_range():
    ramp = np.arange(1001, dtype=np.uint16)
    assert_allclose(intensity_range(RNG.permutation(ramp).reshape(7, 11, 13, 1)), (5, 995))
    sparse = np.zeros((50, 50, 1), np.float32)
    sparse[3, 4] = 2.5
    assert intensity_range(sparse) == (0.0, 2.5)
    assert intensity_range(np.full((4, 4, 1), 3, np.int16)) == (3.0, 3.0)
    # Columns carry all the variation, in powers of two.
    large = np.broadcast_to(np.arange(256, dtype=np.float32), (128, 128, 256))
    assert_allclose(intensity_range(large), np.percentile(np.arange(256), (0.5, 99.5)), atol=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_intensity_range_is_that_of_numpy(dtype):
    for size in (2, 3, *range(41, 600, 7)):
        for high in (2, 7, 250 if dtype == np.uint8 else 30000):
            values = (RNG.integers(0, high, size) - high // 2 * (dtype == np.int16)).astype(dtype)
            want = np.percentile(values, (0.5, 99.5))
            if want[0] < want[1]:
                assert intensity_range(values) == tuple(want)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_match_channels(dtype):
    colour = RNG.integers(0, 200, (3, 5, 6, 3)).astype(dtype)
    grey = match_channels(colour, 1)
    assert grey.dtype == dtype
    assert_allclose(grey[..., 0], colour @ [0.299, 0.587, 0.114], atol=0.51)
    again = match_channels(grey, 3)
    assert_array_equal(again, np.concatenate([grey] * 3, axis=-1))
    assert match_channels(colour, 3) is colour
    with pytest.raises(ValueError, match="cannot turn 3 into 2"):
        match_channels(colour, 2)
